"""Retries and time: after a restart they come when they are due, neither early nor lost, and give-up knows no pause."""

from __future__ import annotations

import time
from datetime import datetime

from shm.files.ledger import States
from tests.fixtures.instance import StartInstance, arrivals, watching
from tests.fixtures.sink import RunningSink, StartSink
from tests.fixtures.until import until

FIRST_S = 8  # due between this and twice as much after the attempt: times of a shard fall on a grid
LATE_S = 5  # on a busy machine
RETRY = f"[retry]\nfirst_s = {FIRST_S}\nmax_s = {FIRST_S}\n"


def seconds(at: str) -> float:
    """A time of the protocol as seconds since the epoch."""
    return datetime.fromisoformat(at).timestamp()


def taken_at(relay: RunningSink, address: str) -> float:
    """When the sink accepted the message to an address."""
    (at,) = [message["time"] for message in relay.messages() if message["rcpt_to"] == address]
    return float(at)


def test_a_retry_comes_when_it_is_due_though_the_engine_was_stopped_meanwhile(
    sink: StartSink, instance: StartInstance
) -> None:
    """Stopped and started before it is due: not early. Stopped until after: made up for at once. Everybody gets it."""
    relay = sink(keep=True)
    engine = instance(relay, RETRY)
    engine.start()
    first = engine.send("soon", ["defer-once+soon@example.org"])
    waiting = engine.until(first, lambda now: now["deferred"] == 1 and now["next_attempt"])
    assert waiting["state"] == "running"
    due = seconds(waiting["next_attempt"])
    engine.stop()
    engine.start()
    started = time.time()
    assert engine.finished(first)["sent"] == 1
    assert due <= taken_at(relay, "defer-once+soon@example.org") < max(due, started) + LATE_S
    second = engine.send("missed", ["defer-once+missed@example.org"])
    waiting = engine.until(second, lambda now: now["deferred"] == 1 and now["next_attempt"])
    engine.stop()
    until(lambda: time.time() > seconds(waiting["next_attempt"]) + 1, what="the time of the retry to pass")
    engine.start()
    started = time.time()
    assert engine.finished(second)["sent"] == 1
    assert taken_at(relay, "defer-once+missed@example.org") < started + LATE_S
    assert set(arrivals(relay).values()) == {1}
    engine.stop()


def test_people_are_given_up_while_their_campaign_is_paused_and_while_it_waits(
    sink: StartSink, instance: StartInstance
) -> None:
    """`give_up_s` after the first attempt, whatever the campaign does and whoever holds the shard; others stay."""
    relay = sink("--latency", "20")
    engine = instance(relay, RETRY)
    engine.start()
    unlucky = [f"defer+{number}@example.org" for number in range(5)]
    others = [f"reader+{number}@example.org" for number in range(300)]
    keys, rate = "give_up_s = 6", "per_second = 20\nburst = 1"
    paused = engine.send("paused", [*unlucky, *others], rate=rate, keys=keys)
    waiting = engine.send("waiting", [*unlucky, *others], rate=rate, keys=keys)
    with watching(engine, paused), watching(engine, waiting):
        for campaign in (paused, waiting):
            engine.until(campaign, lambda now: now["deferred"] == 5)
        engine.ask("campaign.pause", {"campaign": paused})
        relay.kill()
        engine.until(waiting, lambda now: now["state"] == "waiting")
        for campaign in (paused, waiting):
            given_up = engine.until(campaign, lambda now: now["failed"] >= 5 and not now["deferred"])
            assert given_up["pending"] + given_up["in_flight"] > 0
            failed = {address for address, row in engine.rows(campaign).items() if row.state is States.FAILED}
            assert failed >= set(unlucky)
            assert len(failed - set(unlucky)) <= 20  # who was in flight when the relay went away
        assert engine.account(paused)["state"] == "paused"
    for campaign in (paused, waiting):
        engine.ask("campaign.cancel", {"campaign": campaign})
        engine.until(campaign, lambda now: now["finished"])
    engine.stop()


def test_a_campaign_that_only_waits_for_retries_says_so(sink: StartSink, instance: StartInstance) -> None:
    """`campaign show`, `stats` and `campaign why`: how many, and when the next is due."""
    relay = sink()
    engine = instance(relay, "[retry]\nfirst_s = 600\n")
    engine.start()
    campaign = engine.send("later", ["defer+1@example.org", "defer+2@example.org", "reader@example.org"])
    account = engine.until(campaign, lambda now: now["deferred"] == 2 and not now["in_flight"])
    at = account["next_attempt"]
    assert 600 <= seconds(at) - time.time() + 5 < 700
    words = f"2 retries left, next at {at[11:19]} UTC (in "
    shown = engine.ctl("campaign", "show", "later").ok().stdout
    assert any(line.startswith(f"retries  {words}") for line in shown.splitlines()), shown
    assert f"running: {words}" in engine.ctl("stats").ok().stdout
    (cause,) = engine.ask("campaign.why", {"campaign": "later"})["causes"]
    assert (cause["code"], cause["until"]) == ("only_retries", at)
    assert cause["message"] == (
        f"only retries are left: 2 people, the next at {at[:10]} {at[11:19]} UTC. "
        "Most said: 2 times `450 4.2.1 Mailbox busy, try again later`"
    )
    engine.ask("campaign.cancel", {"campaign": campaign})
    engine.finished(campaign)
    engine.stop()
