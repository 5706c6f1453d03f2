"""`campaign why`: the first cause is what holds a campaign back, in words a person can act on."""

from __future__ import annotations

from typing import Any

from tests.fixtures.instance import House, Instance, StartInstance
from tests.fixtures.sink import StartSink
from tests.fixtures.until import until

CAUSE_KEYS = {"code", "message", "hint", "since", "until"}


def why(engine: Instance, campaign: int | str) -> list[dict[str, Any]]:
    """The causes; there is always one, and each has all its keys."""
    answer = engine.ask("campaign.why", {"campaign": campaign})
    assert set(answer) == {"campaign", "state", "causes"}
    assert answer["causes"]
    assert all(set(cause) == CAUSE_KEYS for cause in answer["causes"])
    causes: list[dict[str, Any]] = answer["causes"]
    return causes


def test_a_life_of_a_campaign_in_causes(house: House) -> None:
    """Draft, held by its limit, paused by the operator, going on, finished with people who did not get it."""
    engine, _relay = house
    recipients = [f"reader+{number}@why.example.org" for number in range(150)] + ["defer-once@why.example.org"]
    content = engine.content("why-life", recipients, rate="per_second = 30\nburst = 1", keys="give_up_s = 1")
    campaign = engine.ask("campaign.create", content)["campaign"]
    (draft,) = why(engine, campaign)
    assert (draft["code"], draft["hint"]) == ("draft", "ctl campaign launch why-life")
    engine.ask("campaign.launch", {"campaign": campaign, "checked": True})
    engine.until(campaign, lambda now: now["sent"] > 20)
    limit = until(lambda: [each for each in why(engine, campaign) if each["code"] == "limit"])[0]
    assert limit["message"] == "its limit rate.per_second = 30 is used up"
    assert why(engine, campaign)[0]["code"] == "limit"
    engine.ask("campaign.pause", {"campaign": campaign})
    (paused,) = why(engine, campaign)
    assert (paused["code"], paused["hint"]) == ("paused", f"ctl campaign resume {campaign}")
    assert paused["since"]
    told = engine.ctl("campaign", "why", "why-life").ok().stdout.splitlines()
    assert told[0] == "campaign why-life is paused"
    assert told[1].startswith("- paused by the operator (since ")
    assert told[2] == f"  ctl campaign resume {campaign}"
    engine.ask("campaign.resume", {"campaign": campaign})
    account = engine.finished(campaign)
    (finished,) = why(engine, campaign)
    assert (finished["code"], finished["since"]) == ("finished", account["finished"])
    assert finished["message"] == "it is finished; who did not get it: 1 failed"
    assert "ctl campaign retry why-life" in finished["hint"]
    document = engine.ctl("campaign", "why", "why-life", "--json").ok().json()
    assert document == {"campaign": campaign, "state": "finished", "causes": [finished]}


def test_a_relay_that_is_down_is_named_with_its_words(sink: StartSink, instance: StartInstance) -> None:
    """The first cause of a campaign that waits is what its state says; of one that was cancelled, that."""
    relay = sink("--latency", "20")
    engine = instance(relay)
    engine.start()
    campaign = engine.send("away", 2000)
    engine.until(campaign, lambda now: now["sent"] > 100)
    relay.stop()
    waiting = engine.until(campaign, lambda now: now["state"] == "waiting")
    first = why(engine, campaign)[0]
    assert {name: first[name] for name in ("code", "message", "hint", "since")} == waiting["reason"]
    assert f"127.0.0.1:{relay.port}" in first["message"]
    engine.ask("campaign.cancel", {"campaign": campaign})
    engine.until(campaign, lambda now: now["finished"])
    assert [each["code"] for each in why(engine, campaign)] == ["cancelled"]
    engine.stop()


def test_what_holds_nobody_back_is_said_too_and_who_is_first(sink: StartSink, instance: StartInstance) -> None:
    """Without limits: its connections, or nothing. What relays say to who waits is counted by the words."""
    relay = sink("--latency", "300")
    engine = instance(relay, "[retry]\nfirst_s = 600\n")
    engine.start()
    recipients = [f"defer+{number}@busy.example.org" for number in range(8)]
    recipients += [f"rcpt-451-4.7.1+{number}@busy.example.org" for number in range(3)]
    recipients += [f"reader+{number}@busy.example.org" for number in range(30_000)]
    campaign = engine.send("busy", recipients)
    engine.until(campaign, lambda now: now["deferred"] == 11)
    causes = until(
        lambda: [each for each in why(engine, campaign) if each["code"] == "connections"] and why(engine, campaign)
    )
    assert "20 of `default`" in causes[0]["message"]
    retries = causes[-1]
    assert retries["code"] == "retries"
    assert retries["message"].startswith("11 people deferred, the next at ")
    assert "no more than 25% of the work" in retries["message"]
    assert "8 times `450 4.2.1 Mailbox busy, try again later`; 3 times `451 4.7.1 " in retries["message"]
    engine.ask("campaign.cancel", {"campaign": campaign})
    engine.until(campaign, lambda now: now["finished"])
    engine.stop()


def test_the_breaker_says_that_it_is_near_and_then_that_it_tripped(sink: StartSink, instance: StartInstance) -> None:
    """A third of its attempts bounce: near the limit of two fifths; beyond it the campaign is paused for that."""
    relay = sink("--latency", "20", "--bounce", "0.33")
    engine = instance(relay)
    engine.start()
    near = engine.send("near", 3000, rate="per_second = 300\nburst = 1", keys="[breaker]\nbounced = 0.4\nafter = 200\n")
    causes = until(lambda: [each for each in why(engine, near) if each["code"] == "breaker_near"])
    assert "attempts bounced, it pauses at 40%" in causes[0]["message"]
    tripped = engine.send("tripped", 2000, keys="[breaker]\nbounced = 0.2\nafter = 200\n")
    engine.until(tripped, lambda now: now["state"] == "paused")
    (cause,) = why(engine, tripped)
    assert cause["code"] == "breaker"
    assert "the limit is 20%" in cause["message"]
    for campaign in (near, tripped):
        engine.ask("campaign.cancel", {"campaign": campaign})
        engine.until(campaign, lambda now: now["finished"])
    engine.stop()
