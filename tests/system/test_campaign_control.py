"""Campaigns under way: paused, resumed, cancelled, several at once, sent a second time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from broker.contract.errors import EcmError
from ctl.client import Client
from tests.fixtures.instance import House, arrivals, watching

CONNECTIONS = 20
IN_FLIGHT_MOST = CONNECTIONS * 2  # two messages a connection with PIPELINING
ANSWER_S = 1.0  # pause and cancel answer within this: no further MAIL leaves then


def order(house: House, op: str, campaign: int) -> dict[str, Any]:
    """Ask for a change, which must be answered soon."""
    began = time.monotonic()
    answer = house.engine.ask(op, {"campaign": campaign})
    assert time.monotonic() - began < ANSWER_S
    return answer


@pytest.mark.parametrize("rate", ["per_second = 0", "per_second = 800"], ids=["unlimited", "limited"])
def test_after_a_pause_nothing_leaves_until_it_is_resumed(house: House, rate: str) -> None:
    """What the answer calls in flight may still arrive, nothing else; then all goes on, and nobody is mailed twice."""
    engine, relay = house
    name = "pause-" + rate[-3:].strip(" =")
    campaign = engine.send(name, 2000, rate=rate)
    with watching(engine, campaign) as answers:
        engine.until(campaign, lambda now: now["sent"] > 300)
        paused = order(house, "campaign.pause", campaign)
        assert (paused["state"], paused["reason"]["code"]) == ("paused", "paused")
        assert paused["in_flight"] <= IN_FLIGHT_MOST
        still = engine.until(campaign, lambda now: now["in_flight"] == 0)
        assert still["sent"] <= paused["sent"] + paused["in_flight"]
        assert still["pending"] > 0
        seen = len(answers)
        engine.until(campaign, lambda _: len(answers) > seen + 50)  # for some time nothing moves
        assert all(answer["sent"] == still["sent"] for answer in answers[seen:])
        assert sum(arrivals(relay, name).values()) == still["sent"]
        assert order(house, "campaign.resume", campaign)["state"] == "running"
        account = engine.finished(campaign)
    assert account["sent"] == 2000
    assert set(arrivals(relay, name).values()) == {1}


def test_a_cancelled_campaign_ends_with_everybody_accounted_for(house: House) -> None:
    """Who was mailed is sent, all others are cancelled, and the sink has exactly the messages of the sent."""
    engine, relay = house
    campaign = engine.send("cancel", 3000)
    with watching(engine, campaign) as answers:
        engine.until(campaign, lambda now: now["sent"] > 300)
        cancelled = order(house, "campaign.cancel", campaign)
        assert cancelled["state"] == "cancelled"
        assert cancelled["in_flight"] <= IN_FLIGHT_MOST
        account = engine.until(campaign, lambda now: now["finished"])
    assert account["sent"] <= cancelled["sent"] + cancelled["in_flight"]
    assert (account["cancelled"], account["uncertain"]) == (3000 - account["sent"], 0)
    assert len(arrivals(relay, "cancel")) == sum(arrivals(relay, "cancel").values()) == account["sent"]
    assert engine.audit(campaign)["cancelled"] == account["cancelled"]
    states = [answer["state"] for answer in answers]
    assert states == sorted(states, key=["running", "cancelled"].index)
    for op in ("campaign.cancel", "campaign.pause", "campaign.resume"):
        with pytest.raises(EcmError, match="it is cancelled"):
            engine.ask(op, {"campaign": campaign})


def test_a_paused_campaign_can_be_cancelled(house: House) -> None:
    """Nobody was in flight: it is over at once."""
    engine, relay = house
    campaign = engine.send("cancel-paused", 1500)
    engine.until(campaign, lambda now: now["sent"] > 100)
    order(house, "campaign.pause", campaign)
    still = engine.until(campaign, lambda now: now["in_flight"] == 0)
    order(house, "campaign.cancel", campaign)
    account = engine.finished(campaign)
    assert (account["state"], account["sent"]) == ("cancelled", still["sent"])
    assert account["cancelled"] == 1500 - still["sent"]
    assert len(arrivals(relay, "cancel-paused")) == still["sent"]


@pytest.mark.parametrize("wait_s", [0.0, 0.05, 0.1, 0.2, 0.3])
def test_a_campaign_cancelled_while_it_is_prepared_mails_nobody_more(house: House, wait_s: float) -> None:
    """Whenever the cancel comes, before, during or after the snapshot, the account is complete and stays so."""
    engine, relay = house
    name = f"early-{int(wait_s * 100)}"
    campaign = engine.ask("campaign.send", engine.content(name, 5000))["campaign"]
    time.sleep(wait_s)  # not to see something, but to meet different moments
    engine.ask("campaign.cancel", {"campaign": campaign})
    account = engine.until(campaign, lambda now: now["state"] == "cancelled" and now["finished"] and not now["pending"])
    messages = sum(arrivals(relay, name).values())
    if account["sent"] is None:
        assert messages == 0
    else:
        account = engine.finished(campaign)
        assert account["cancelled"] + account["sent"] == 5000
        assert messages == account["sent"]


def test_two_campaigns_progress_side_by_side(house: House) -> None:
    """Of two campaigns of one weight neither waits for the other."""
    engine, relay = house
    first, second = engine.send("left", 20_000), engine.send("right", 20_000)
    with watching(engine, first), watching(engine, second):
        engine.until(first, lambda now: now["sent"] > 10_000)
        assert engine.account(second)["sent"] > 2000
        accounts = engine.finished(first), engine.finished(second)
    assert [account["sent"] for account in accounts] == [20_000, 20_000]
    assert set(arrivals(relay, "left").values()) == set(arrivals(relay, "right").values()) == {1}


def test_sending_a_name_again_follows_what_runs_and_refuses_what_ended(house: House) -> None:
    """Running: the same campaign is followed. Ended: exit 2 with its date and count. Nobody is mailed twice."""
    engine, relay = house
    request = engine.content("again", 1500)
    first = engine.ask("campaign.send", {**request, "checked": True})
    assert first["followed"] is False
    engine.until(first["campaign"], lambda now: now["sent"] > 100)
    assert engine.ask("campaign.send", request) == {"campaign": first["campaign"], "followed": True}
    account = engine.finished(first["campaign"])
    with pytest.raises(EcmError) as refused:
        engine.ask("campaign.send", request)
    assert (refused.value.code, refused.value.exit) == ("campaign_ended", 2)
    assert refused.value.message == f"campaign `again` was finished on {account['finished']}, 1,500 sent"
    assert sum(arrivals(relay, "again").values()) == 1500


def test_many_who_send_one_name_at_once_send_it_once(house: House) -> None:
    """Eight requests at the same moment: one campaign."""
    engine, relay = house
    request = {**engine.content("crowd", 300), "checked": True}

    def send(_: int) -> dict[str, Any]:
        with Client(engine.state) as client:
            return client.request("campaign.send", request)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(send, range(8)))
    assert len({answer["campaign"] for answer in answers}) == 1
    assert [answer["followed"] for answer in answers].count(False) == 1
    engine.finished(answers[0]["campaign"])
    assert sum(arrivals(relay, "crowd").values()) == 300
