"""Senders that hang, crash on one recipient, or cannot start: noticed, replaced, told, and not waited for."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from shm.files.ledger import States
from tests.fixtures.instance import StartInstance, arrivals, watching
from tests.fixtures.sabotage import Sabotage
from tests.fixtures.sink import StartSink
from tests.fixtures.until import until

# The composer of a sender, told to do something else for one recipient.
COMPOSE = """
import os, sys, time
whole = module.Composer.compose

def spin_for_ever():
    while True:
        pass

def {name}(self, fields, *rest):
    if fields["email"].startswith("magic@") and "actors.sender.actor" in sys.modules:
        {deed}
    return whole(self, fields, *rest)

module.Composer.compose = {name}
"""
ONCE = (
    "try: os.close(os.open({marker!r}, os.O_CREAT | os.O_EXCL))\n        except FileExistsError: pass\n        else: "
)
PEOPLE = [f"user{number}@magic.example.org" for number in range(1000)]


def test_a_stopped_sender_is_replaced_and_its_work_is_done(sink: StartSink, instance: StartInstance) -> None:
    """SIGSTOP: it falls silent, shows as hung, is ended, and the campaign completes with a complete account."""
    relay = sink("--latency", "20", keep=True)
    engine = instance(relay)
    engine.start()
    campaign = engine.send("news", 1500)
    engine.until(campaign, lambda now: now["sent"] > 300)
    (victim, other) = (psutil.Process(pid) for pid in engine.pids("sender"))
    with watching(engine, campaign):
        os.kill(victim.pid, signal.SIGSTOP)
        words = set()

        def ended() -> bool:
            stats = engine.ask("engine.stats")
            words.update((actor["state"], stats["engine"]["health"]) for actor in stats["actors"])
            return not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE

        until(ended, what="the end of the stopped sender")
        account = engine.finished(campaign)
    assert ("hung", "degraded") in words
    assert account["sent"] + account["uncertain"] == 1500
    sent = {address for address, row in engine.rows(campaign).items() if row.state is States.SENT}
    assert sent <= set(arrivals(relay))
    assert engine.pids("sender") != [victim.pid, other.pid]
    assert other.pid in engine.pids("sender")
    engine.stop()


def test_a_sender_that_spins_tells_where_and_is_replaced(
    sink: StartSink, instance: StartInstance, sabotage: Sabotage, tmp_path: Path
) -> None:
    """A loop without end while one message is composed: its stack is in the log, and everybody gets their mail."""
    deed = ONCE.format(marker=str(tmp_path / "spun")) + "spin_for_ever()"
    sabotage(COMPOSE.format(name="compose_or_spin", deed=deed), "actors.message.compose")
    relay = sink(keep=True)
    engine = instance(relay)
    engine.start()
    people = [*PEOPLE[:500], "magic@magic.example.org", *PEOPLE[500:]]
    campaign = engine.send("magic", people)
    account = engine.finished(campaign)
    assert account["sent"] + account["uncertain"] == len(people)
    assert arrivals(relay)["magic@magic.example.org"] == 1
    log = engine.log()
    assert re.search(r'event="actor hung" .*name="sender \d"', log)
    stack = log[log.index("Current thread") :]
    assert re.search(r'File "sabotage", line \d+ in spin_for_ever\n.*in compose_or_spin\n.*walk\.py"', stack)
    engine.stop()


def test_a_recipient_that_kills_every_sender_is_given_up_alone(
    sink: StartSink, instance: StartInstance, sabotage: Sabotage
) -> None:
    """Composing for one person crashes the process each time: that person FAILED, all others got their mail."""
    deed = "os.kill(os.getpid(), 11)"
    sabotage(COMPOSE.format(name="compose_or_crash", deed=deed), "actors.message.compose")
    relay = sink(keep=True)
    engine = instance(relay)
    engine.start()
    people = [*PEOPLE[:20], "magic@magic.example.org", *PEOPLE[20:60]]
    campaign = engine.send("magic", people)
    with watching(engine, campaign):
        account = engine.finished(campaign)
    assert account["failed"] == 1
    states = {address: row.state for address, row in engine.rows(campaign).items()}
    assert states.pop("magic@magic.example.org") is States.FAILED
    # Who was in flight at two of the deaths stays uncertain: nobody is sent a third copy.
    assert set(states.values()) <= {States.SENT, States.UNCERTAIN}
    assert account["uncertain"] <= 20
    assert {address for address, state in states.items() if state is States.SENT} <= set(arrivals(relay))
    engine.stop()


# A sender, told to crash between two messages, while rows are claimed, as long as a file is there.
CRASHING = """
import os
whole = module.Sender._committed

def committed_or_crash(self, leases, fault):
    if leases and os.path.exists({marker!r}):
        raise RuntimeError("broken inside")
    whole(self, leases, fault)

module.Sender._committed = committed_or_crash
"""


def test_senders_that_crash_whatever_they_send_cost_nobody_his_mail(
    sink: StartSink, instance: StartInstance, sabotage: Sabotage, tmp_path: Path
) -> None:
    """No row is convicted, however often: the campaign waits, says why, and goes on by itself once it can."""
    marker = tmp_path / "broken"
    marker.touch()
    sabotage(CRASHING.format(marker=str(marker)), "actors.sender.actor")
    relay = sink(keep=True)
    engine = instance(relay)
    engine.start()
    campaign = engine.send("news", 60)
    with watching(engine, campaign):
        waiting = engine.until(campaign, lambda now: now["state"] == "waiting")
        assert waiting["reason"]["code"] == "sender_crashes"
        assert waiting["reason"]["message"] == "the sender crashes: RuntimeError('broken inside')"
        assert "engine.log" in waiting["reason"]["hint"]
        died = engine.log().count('event="actor died"')
        until(lambda: engine.log().count('event="actor died"') > died, what="another try")
        assert (waiting["failed"], engine.account(campaign)["failed"]) == (0, 0)
        marker.unlink()
        account = engine.finished(campaign)
    assert (account["sent"], account["attempts"]) == (60, 60)
    assert set(arrivals(relay).values()) == {1}
    engine.stop()


BROKEN = 'raise ImportError("libfoo.so: cannot open shared object file")'


def test_a_sender_that_cannot_start_stops_the_engine_loudly(
    sink: StartSink, instance: StartInstance, sabotage: Sabotage
) -> None:
    """`ctl start` exits 1 with one clear line and a hint; no process, socket or shared memory is left."""
    sabotage(BROKEN, "actors.sender.actor")
    engine = instance(sink())
    failed = engine.ctl("start")
    assert (failed.status, failed.stdout) == (1, "")
    first, hint = failed.stderr.splitlines()
    assert re.fullmatch(r"error: (\S+: )?sender \d cannot start: exit status 1, \d times before it was ready", first)
    assert hint.startswith("hint: ")
    assert "libfoo.so" in engine.log()
    assert engine.pid is None
    assert list(engine.state.run.iterdir()) == []


@pytest.mark.parametrize("actor", ["loader", "monitor"])
def test_a_helper_that_cannot_start_stops_the_engine_too(
    sink: StartSink, instance: StartInstance, sabotage: Sabotage, actor: str
) -> None:
    """Mail may flow before they are up; but an engine that will never have one ends, and its log says why."""
    sabotage(BROKEN, f"actors.{actor}.actor")
    engine = instance(sink())
    engine.ctl("start")
    until(lambda: not engine.processes(), what="the end of the engine")
    assert re.search(
        rf'event="engine failed" .*code=start_failed .*{actor} 0 cannot start: exit status 1', engine.log()
    )
    assert list(engine.state.run.iterdir()) == []
    assert engine.ctl("status").status == 3
