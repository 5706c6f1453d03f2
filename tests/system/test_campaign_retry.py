"""`campaign retry`: who failed or is uncertain is tried again, whatever the campaign does, and nobody else is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from broker.contract.errors import EcmError
from shm.files.ledger import States
from tests.fixtures.instance import House, Instance, StartInstance, arrivals, prove, watching
from tests.fixtures.sink import StartSink

# Deferred at the first attempt, taken at the second; given up before there is one.
HASTY = "give_up_s = 1"


def people(name: str, *kinds: str, each: int = 1) -> list[str]:
    """Addresses in the campaign's own domain: `each` of every kind the sink knows, tagged to keep them apart."""
    return [f"{kind}+{number}@{name}.example.org" for kind in kinds for number in range(each)]


def retry(engine: Instance, campaign: int, *states: str) -> dict[str, int]:
    """Ask for it; the account in the answer adds up. Whom it concerns."""
    answer = engine.ask("campaign.retry", {"campaign": campaign, "states": list(states)})
    prove(answer["campaign"])
    retried: dict[str, int] = answer["retried"]
    return retried


def unlucky(engine: Instance, name: str, recipients: Sequence[str], keys: str = HASTY) -> tuple[int, dict[str, Any]]:
    """A finished campaign; its id and account."""
    campaign = engine.send(name, recipients, keys=f'{keys}\nuncertain = "hold"')
    return campaign, engine.finished(campaign)


def test_who_failed_of_a_finished_campaign_gets_it_after_all(house: House) -> None:
    """It runs again; those who have it already get nothing; a second retry finds nobody and changes nothing."""
    engine, relay = house
    everybody = people("after-all", "reader", "defer-once", "bounce", each=20)
    campaign, before = unlucky(engine, "after-all", everybody)
    assert (before["sent"], before["failed"], before["bounced"]) == (20, 20, 20)
    with watching(engine, campaign):
        assert retry(engine, campaign, "failed", "uncertain") == {"failed": 20, "uncertain": 0}
        account = engine.finished(campaign)
    assert (account["sent"], account["failed"], account["bounced"]) == (40, 0, 20)
    assert account["attempts"] == before["attempts"] + 20
    assert arrivals(relay, "after-all") == dict.fromkeys(people("after-all", "reader", "defer-once", each=20), 1)
    assert retry(engine, campaign, "failed", "uncertain") == {"failed": 0, "uncertain": 0}
    assert engine.account(campaign) == account
    assert engine.audit(campaign)["sent"] == 40


def test_only_the_states_that_are_named_are_tried_again(house: House) -> None:
    """`uncertain` leaves who failed; whoever may have got it is marked as mailed twice, and is, at most."""
    engine, relay = house
    campaign, before = unlucky(engine, "named", people("named", "drop-after-once", "defer-once", each=5))
    failed, uncertain = before["failed"], before["uncertain"]
    assert (failed + uncertain, before["sent"], before["resent"]) == (10, 0, 0)
    assert uncertain >= 5  # a connection that is lost may have carried others too
    unsure = {address for address, row in engine.rows(campaign).items() if row.state is States.UNCERTAIN}
    assert retry(engine, campaign, "uncertain") == {"failed": 0, "uncertain": uncertain}
    account = engine.finished(campaign)
    assert account["uncertain"] + account["failed"] + account["sent"] == 10
    assert account["failed"] >= failed
    assert account["resent"] == uncertain
    assert {address for address, row in engine.rows(campaign).items() if row.sticky} == unsure
    while account["sent"] < 10:  # whoever met another's fault once more
        retry(engine, campaign, "failed", "uncertain")
        account = engine.finished(campaign)
    assert set(arrivals(relay, "named")) == set(engine.rows(campaign))


def test_a_running_campaign_retries_shards_that_senders_hold(house: House) -> None:
    """They are called back and changed when nobody holds them; all the time each answer adds up, nobody gets two."""
    engine, relay = house
    recipients = people("running", "defer-once", each=10) + people("running", "reader", each=400)
    campaign = engine.send("running", recipients, rate="per_second = 100\nburst = 1", keys=HASTY)
    with watching(engine, campaign):
        engine.until(campaign, lambda now: now["failed"] >= 5)
        assert engine.account(campaign)["state"] == "running"
        first = retry(engine, campaign, "failed")["failed"]
        assert first >= 5
        now = engine.account(campaign)
        assert now["state"] == "running"
        account = engine.finished(campaign)
    assert account["sent"] == 410 - account["failed"]
    assert account["failed"] <= 10 - first
    assert retry(engine, campaign, "failed")["failed"] == account["failed"]
    assert engine.finished(campaign)["sent"] == 410
    assert arrivals(relay, "running") == dict.fromkeys(recipients, 1)


def test_a_paused_campaign_stays_paused_and_tries_them_when_it_goes_on(house: House) -> None:
    """The retry is remembered in the ledgers, nobody is mailed meanwhile."""
    engine, relay = house
    recipients = people("paused-retry", "defer-once", each=5) + people("paused-retry", "reader", each=300)
    campaign = engine.send("paused-retry", recipients, rate="per_second = 60\nburst = 1", keys=HASTY)
    engine.until(campaign, lambda now: now["failed"] == 5)
    engine.ask("campaign.pause", {"campaign": campaign})
    still = engine.until(campaign, lambda now: now["in_flight"] == 0)
    assert retry(engine, campaign, "failed") == {"failed": 5, "uncertain": 0}
    paused = engine.account(campaign)
    assert (paused["state"], paused["failed"], paused["deferred"]) == ("paused", 0, 5)
    assert paused["sent"] == still["sent"]
    engine.ask("campaign.resume", {"campaign": campaign})
    assert engine.finished(campaign)["sent"] == 305
    assert set(arrivals(relay, "paused-retry").values()) == {1}


def test_what_was_cancelled_or_never_launched_is_not_retried(house: House) -> None:
    """A clear error, exit 2, and nothing has changed."""
    engine, _relay = house
    campaign = engine.send("no-retry", people("no-retry", "reader", each=200), rate="per_second = 20\nburst = 1")
    engine.ask("campaign.cancel", {"campaign": campaign})
    account = engine.finished(campaign)
    with pytest.raises(EcmError) as refused:
        retry(engine, campaign, "failed")
    assert (refused.value.code, refused.value.exit) == ("wrong_state", 2)
    assert refused.value.message == "cannot retry: it is cancelled"
    assert engine.account(campaign) == account
    draft = engine.ask("campaign.create", engine.content("never", 1))["campaign"]
    with pytest.raises(EcmError, match="cannot retry: it is draft"):
        retry(engine, draft, "failed")


def test_the_command_says_how_many_and_may_wait_for_the_end(house: House) -> None:
    """Two and one; nobody; --json; a state that cannot be retried; the directory may still stand behind the command."""
    engine, _relay = house
    state = str(engine.state.root)
    unlucky(engine, "said", people("said", "defer-once", each=2) + people("said", "drop-after-once"))
    waited = engine.ctl("campaign", "retry", "said", "--state", "failed,uncertain", "--wait", "--state", state).ok()
    assert waited.stderr.splitlines()[0] == "campaign said: 2 failed and 1 uncertain are tried again"
    assert {"state  finished", "sent  3", "failed  0"} <= set(waited.stdout.splitlines())
    nobody = engine.ctl("campaign", "retry", "said").ok()
    assert nobody.stderr == "campaign said: nobody is failed, so nobody is tried again\n"
    document = engine.ctl("campaign", "retry", "said", "--state", "uncertain", "--json").ok().json()
    assert document["retried"] == {"failed": 0, "uncertain": 0}
    assert document["campaign"]["name"] == "said"
    empty = engine.ctl("campaign", "retry", "said", "--state", "")
    assert empty.status == 2
    assert "it is empty; it is failed, uncertain or both" in empty.stderr
    refused = engine.ctl("campaign", "retry", "said", "--state", "bounced")
    assert refused.status == 2
    assert "nobody can be tried again who is `bounced`" in refused.stderr


@pytest.mark.parametrize("restarted", [False, True], ids=["same-engine", "restarted"])
def test_who_was_suppressed_since_the_campaign_ended_is_not_mailed(
    sink: StartSink, instance: StartInstance, restarted: bool
) -> None:
    """The log of a later engine begins behind the campaign's end: the suppressions from before it hold all the same."""
    relay = sink(keep=True)
    engine = instance(relay)
    engine.start()
    recipients = people("quiet", "defer-once", each=6)
    campaign, before = unlucky(engine, "quiet", recipients)
    assert before["failed"] == 6
    engine.ask("suppress.add", {"addresses": recipients[:3]})
    engine.ask("suppress.remove", {"addresses": recipients[2:3]})
    if restarted:
        engine.stop()
        engine.start()
    engine.ask("suppress.add", {"addresses": recipients[3:4]})
    assert retry(engine, campaign, "failed")["failed"] == 6
    account = engine.finished(campaign)
    assert (account["suppressed"], account["sent"]) == (3, 3)
    assert arrivals(relay) == dict.fromkeys((recipients[2], *recipients[4:]), 1)
    states = {address: row.state for address, row in engine.rows(campaign).items()}
    assert [states[address] for address in (*recipients[:2], recipients[3])] == [States.SUPPRESSED] * 3
    engine.ask("suppress.add", {"addresses": recipients[4:5]})
    engine.stop()
    engine.start()  # and the next start finds nothing amiss
    assert engine.audit(campaign)["suppressed"] == 3
    engine.stop()


def test_the_limits_of_a_finished_campaign_hold_for_its_retry(sink: StartSink, instance: StartInstance) -> None:
    """Its hour is used up: who is tried again waits for the next one, and `campaign why` says so."""
    relay = sink(keep=True)
    engine = instance(relay)
    engine.start()
    campaign = engine.send("hourly", people("hourly", "defer-once", each=3), rate="per_hour = 3", keys=HASTY)
    assert engine.finished(campaign)["attempts"] == 3
    engine.stop()
    engine.start()
    assert retry(engine, campaign, "failed") == {"failed": 3, "uncertain": 0}
    held = engine.until(campaign, lambda now: now["limit"])
    assert held["limit"]["name"] == "rate.per_hour"
    assert (held["state"], held["deferred"] + held["in_flight"], held["attempts"]) == ("running", 3, 3)
    causes = engine.ask("campaign.why", {"campaign": campaign})["causes"]
    assert any(each["code"] == "limit" and "rate.per_hour" in each["message"] and each["until"] for each in causes)
    engine.stop()
    engine.start()
    assert engine.account(campaign)["attempts"] == 3
    engine.ask("campaign.cancel", {"campaign": campaign})
    assert engine.finished(campaign)["cancelled"] == 3
    assert relay.counts()["messages"] == 0
    engine.stop()
