"""kill -9 of any process of the engine at any moment: the account stays complete, nobody is lost, few are mailed twice.

The moments are chosen at random; ECM_SEED repeats a run. What must hold afterwards, whoever died:

- every recipient is SENT and the sink got a message for each, but for those who were in flight at two kills: they are
  UNCERTAIN and stay so, since nobody is sent a third copy;
- who got two is marked `resent` in the ledger, and there are at most a window of them a connection and kill;
- nothing of the dead engine is left once the next one was started and stopped.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from shm.files.ledger import States
from shm.segment import names
from tests.fixtures.instance import Instance, StartInstance, arrivals, gone, watching
from tests.fixtures.sink import RunningSink, StartSink
from tests.fixtures.until import until

CONNECTIONS = 20
WINDOW = 16  # most messages in flight on one of them, as shipped
PEOPLE = 2000


@pytest.fixture
def chance() -> Iterator[random.Random]:
    """Random numbers; the seed is printed if the test fails."""
    seed = int(os.environ.get("ECM_SEED") or random.randrange(10**9))
    print(f"ECM_SEED={seed}")
    return random.Random(seed)


def moments(chance: random.Random) -> list[int]:
    """Numbers of sent messages at which something is killed: early and late."""
    return [chance.randrange(PEOPLE * 3 // 10), chance.randrange(PEOPLE * 5 // 10, PEOPLE * 8 // 10)]


def check(engine: Instance, relay: RunningSink, campaign: int, kills: int) -> None:
    """Nobody was lost; who was mailed twice is known, and few."""
    account = engine.finished(campaign)
    arrived, rows = arrivals(relay), engine.rows(campaign)
    assert account["sent"] + account["uncertain"] == len(rows) == PEOPLE, account
    sent = {address for address, row in rows.items() if row.state is States.SENT}
    assert sent <= set(arrived), "lost"
    resent = {address for address, row in rows.items() if row.sticky}
    assert set(rows) - sent <= resent
    assert {address for address, count in arrived.items() if count > 1} <= resent
    assert max(arrived.values()) <= 2
    assert len(resent) == account["resent"] <= CONNECTIONS * WINDOW * kills


def test_senders_killed_in_mid_campaign(sink: StartSink, instance: StartInstance, chance: random.Random) -> None:
    """Each is replaced at once; every answer on the way adds up."""
    relay = sink("--latency", "20", keep=True)
    engine = instance(relay)
    engine.start()
    campaign = engine.send("news", PEOPLE)
    with watching(engine, campaign):
        for sent in moments(chance):
            engine.until(campaign, lambda now, sent=sent: now["sent"] > sent)
            victim = chance.choice(engine.pids("sender"))
            engine.kill([victim])
            until(lambda old=victim: old not in (now := engine.pids("sender")) and len(now) == 2, what="a new sender")
        check(engine, relay, campaign, 2)
    engine.stop()


def test_the_broker_killed_in_mid_campaign(sink: StartSink, instance: StartInstance, chance: random.Random) -> None:
    """Senders finish what is in flight and end; the next broker goes on."""
    relay = sink("--latency", "20", keep=True)
    engine = instance(relay)
    engine.start()
    campaign = engine.send("news", PEOPLE)
    with watching(engine, campaign):
        for sent in moments(chance):
            engine.until(campaign, lambda now, sent=sent: now["sent"] > sent)
            orphans = [psutil.Process(pid) for pid in engine.processes() if pid != engine.pid]
            engine.kill_broker()
            if chance.random() < 0.5:
                gone(orphans)  # by themselves
            engine.start()
            gone(orphans)
        check(engine, relay, campaign, 2)
    engine.stop()


def test_everything_killed_at_once(sink: StartSink, instance: StartInstance, chance: random.Random) -> None:
    """Only what was in flight is uncertain, and resent once."""
    relay = sink("--latency", "20", keep=True)
    engine = instance(relay)
    engine.start()
    campaign = engine.send("news", PEOPLE)
    with watching(engine, campaign):
        for sent in moments(chance):
            engine.until(campaign, lambda now, sent=sent: now["sent"] > sent)
            engine.kill_all()
            between = engine.audit(campaign)
            assert between["sent"] <= relay.counts()["messages"]
            engine.start()
        check(engine, relay, campaign, 2)
    engine.stop()


def test_uncertain_recipients_are_held_where_the_campaign_says_so(sink: StartSink, instance: StartInstance) -> None:
    """`uncertain = "hold"`: after a kill who was in flight stays uncertain, and nobody at all is mailed twice."""
    relay = sink("--latency", "20", keep=True)
    engine = instance(relay)
    engine.start()
    campaign = engine.send("news", 1000, keys='uncertain = "hold"')
    engine.until(campaign, lambda now: now["sent"] > 200)
    engine.kill_all()
    engine.start()
    account = engine.finished(campaign)
    assert 0 < account["uncertain"] <= CONNECTIONS * 2
    assert account["sent"] + account["uncertain"] == 1000
    arrived = arrivals(relay)
    assert set(arrived.values()) == {1}
    assert account["sent"] <= len(arrived) <= 1000
    engine.stop()


def test_an_engine_killed_during_a_snapshot_takes_it_up_again(sink: StartSink, instance: StartInstance) -> None:
    """A campaign that was being prepared is prepared anew by the next engine and mails everybody once."""
    relay = sink()
    engine = instance(relay)
    engine.start()
    campaign = engine.ask("campaign.create", engine.content("news", 10_000))["campaign"]
    (loader,) = engine.pids("loader")
    os.kill(loader, signal.SIGSTOP)  # so that the snapshot is certainly not over
    engine.ask("campaign.launch", {"campaign": campaign})
    assert engine.account(campaign)["state"] == "preparing"
    engine.kill_all()
    engine.start()
    account = engine.finished(campaign)
    assert account["sent"] == 10_000
    assert relay.counts()["messages"] == 10_000
    engine.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["asked", "killed"])
def test_a_start_that_is_broken_off_leaves_nothing(
    sink: StartSink, instance: StartInstance, chance: random.Random, number: signal.Signals
) -> None:
    """Ended at any moment of its start: asked to end it cleans up itself, killed the next start does."""
    engine = instance(sink())
    arenas = set()
    for _ in range(5):
        starting = engine.begin("start", "--foreground")
        until(engine.state.broker_lock.exists)
        with contextlib.suppress(subprocess.TimeoutExpired):
            starting.wait(chance.random() * 0.4)
        with contextlib.suppress(OSError):
            arenas.add(engine.state.arena_name.read_text().strip())
        starting.send_signal(number)
        starting.communicate(timeout=40)
        if number is signal.SIGTERM:
            assert list(engine.state.run.iterdir()) == []
            assert not arenas & set(names("ecm-"))
    engine.start()
    engine.stop()
    assert not arenas & set(names("ecm-"))
