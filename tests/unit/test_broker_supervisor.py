"""Births and deaths of actors, with real processes that live as short as a test wants (broker/supervisor.py)."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from broker import process, supervisor
from broker.contract.boot import Boot
from broker.contract.errors import EcmError
from broker.process import Child
from broker.supervisor import Slot, Supervisor
from shm.arena import Arena, Shape
from shm.live.heartbeat import Heartbeats
from tests.fixtures.until import until

ROW = 1


class Stage:
    """A supervisor of one sender, and what it said."""

    def __init__(self, habit: str) -> None:
        self.habit = habit
        self.arena = Arena.create(f"/ecm-{secrets.token_hex(6)}", Shape(actors=2, slots=1, relays=1), "0" * 12, "boot")
        self.slot = Slot("sender", 0, ROW, ())
        self.events: list[tuple[str, dict[str, object]]] = []
        self.deaths: list[int] = []
        self.supervisor = Supervisor(
            [self.slot], Heartbeats(self.arena), self._boot,
            lambda slot: self.deaths.append(slot.generation),
            lambda event, _, data: self.events.append((event, data)),
        )  # fmt: skip

    def _boot(self, slot: Slot) -> Boot:
        return Boot(
            kind=slot.kind, index=slot.index, row=slot.row, generation=slot.generation, state_dir="", start_id="0" * 12,
            instance="0" * 32, arena_name=self.arena.name, broker_pid=os.getpid(), broker_starttime=0,
            settings={"habit": self.habit},
        )  # fmt: skip

    def until(self, look: Callable[[], Any]) -> Any:
        """Make rounds until something is seen."""

        def round_() -> Any:
            self.supervisor.step()
            return look()

        return until(round_, within_s=20)

    def said(self, event: str) -> list[dict[str, object]]:
        """What was said with each event of that name."""
        return [data for name, data in self.events if name == event]

    def close(self) -> None:
        """End what lives."""
        self.supervisor.stopping = True
        self.supervisor.kill_all()
        self.until(lambda: not self.supervisor.alive())
        self.arena.close()
        Arena.unlink(self.arena.name)


MakeStage = Callable[[str], Stage]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeStage]:
    """A factory: stage(habit) -> Stage, whose sender was started."""
    monkeypatch.setitem(process._MODULES, "sender", "tests.fixtures.short_lived")
    made: list[Stage] = []

    def make(habit: str) -> Stage:
        made.append(Stage(habit))
        made[-1].supervisor.start()
        return made[-1]

    yield make
    for each in made:
        each.close()
    process.stop_resource_tracker()


def test_a_killed_actor_is_replaced_at_once_and_its_death_is_told_once(stage: MakeStage) -> None:
    """A new process in the same row, of the next generation."""
    made = stage("ready")
    made.until(made.supervisor.ready)
    assert made.supervisor.senders() == [made.slot]
    assert made.slot.child is not None
    old = made.slot.child.pid
    os.kill(old, signal.SIGKILL)
    made.until(lambda: made.slot.generation == 2)
    assert made.deaths == [1]
    assert made.slot.child.pid != old
    assert made.said("actor.died") == [{"pid": old, "how": "signal SIGKILL"}]
    made.until(made.supervisor.ready)


def test_a_signal_without_a_name_is_told_by_its_number(stage: MakeStage) -> None:
    """Real-time signals have no names, but for two: a death by one stops nobody."""
    made = stage("ready")
    made.until(made.supervisor.ready)
    assert made.slot.child is not None
    os.kill(made.slot.child.pid, 40)
    made.until(lambda: made.deaths)
    assert made.said("actor.died")[0]["how"] == "signal 40"


@pytest.mark.parametrize("habit", ["quiet", "ended"])
def test_a_silent_actor_is_asked_for_its_stack_and_ends(
    stage: MakeStage, monkeypatch: pytest.MonkeyPatch, habit: str
) -> None:
    """Also one that said it had ended, and does not: its place is wanted."""
    monkeypatch.setattr(supervisor, "SILENCE_S", 0.5)
    made = stage(habit)
    made.until(lambda: made.said("actor.hung"))
    assert made.supervisor.senders() == []
    made.until(lambda: made.deaths)
    assert made.said("actor.died")[0]["how"] == "signal SIGABRT"


def test_a_stopped_actor_that_cannot_tell_its_stack_is_killed(
    stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL ends a stopped process too."""
    monkeypatch.setattr(supervisor, "SILENCE_S", 0.5)
    monkeypatch.setattr(supervisor, "STACK_S", 0.2)
    made = stage("ready")
    made.until(made.supervisor.ready)
    assert made.slot.child is not None
    os.kill(made.slot.child.pid, signal.SIGSTOP)
    made.until(lambda: made.deaths)
    assert made.said("actor.died")[0]["how"] == "signal SIGKILL"


def test_who_was_asleep_takes_nobody_for_hung(stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a round that came late, silence is counted from that round: all were frozen, not they alone."""
    made = stage("ready")
    made.until(made.supervisor.ready)
    assert made.slot.child is not None
    os.kill(made.slot.child.pid, signal.SIGSTOP)
    asleep = time.monotonic() + 60
    monkeypatch.setattr("broker.supervisor.time.monotonic", lambda: asleep)
    made.supervisor.step()
    assert made.said("actor.hung") == []
    os.kill(made.slot.child.pid, signal.SIGCONT)


def test_a_sender_that_drains_gets_no_leases(stage: MakeStage) -> None:
    """Whoever told it to end: what it is offered it would not take."""
    made = stage("drains")
    made.until(lambda: made.slot.draining)
    assert made.supervisor.senders() == []
    assert made.supervisor.state(made.slot) == "draining"


@pytest.mark.parametrize(("habit", "births"), [("failed", 1), ("crash", 3)])
def test_an_actor_that_cannot_start_stops_the_service(stage: MakeStage, habit: str, births: int) -> None:
    """At once if it says so itself, else after the third death before it was ready."""
    made = stage(habit)
    with pytest.raises(EcmError) as caught:
        made.until(lambda: False)
    assert caught.value.code == "start_failed"
    assert made.slot.generation == births


def test_a_process_the_system_does_not_give_is_tried_again(stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that runs goes on with the other actors; one that never ran says why it cannot start."""
    made = stage("ready")
    made.until(made.supervisor.ready)
    refusals = iter(range(4))

    def refused(boot: Boot) -> Child:
        if next(refusals, None) is not None:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return Child(boot)

    monkeypatch.setattr(supervisor, "Child", refused)
    monkeypatch.setattr(supervisor, "BACKOFF_S_MAX", 0.05)
    assert made.slot.child is not None
    made.slot.child.kill()
    made.until(lambda: made.slot.generation == 6 and made.supervisor.ready())
    assert made.deaths == [1]

    refusals = iter(range(9))
    fresh = Supervisor([Slot("sender", 0, ROW, ())], Heartbeats(made.arena), made._boot, print, print)
    fresh.start()
    with pytest.raises(EcmError, match="cannot be started: Resource temporarily unavailable"):
        until(fresh.step, within_s=5)


def _died(made: Stage, generation: int) -> bool:
    return made.deaths[-1:] == [generation]


def test_deaths_in_a_row_are_answered_more_slowly(stage: MakeStage) -> None:
    """The first at once; the second within ten seconds after half a second."""
    made = stage("ready")
    waits = []
    for generation in (1, 2):
        made.until(lambda: made.slot.child is not None and made.supervisor.ready())
        assert made.slot.child is not None
        made.slot.child.kill()
        made.until(partial(_died, made, generation))
        waits.append(made.slot.not_before - made.slot.deaths[-1])
    assert waits == [0, pytest.approx(0.5)]


def test_nobody_is_started_while_the_engine_stops(stage: MakeStage) -> None:
    """An actor that ends then is gone for good."""
    made = stage("ready")
    made.until(made.supervisor.ready)
    made.supervisor.stopping = True
    assert made.slot.child is not None
    made.slot.child.kill()
    made.until(lambda: not made.supervisor.alive())
    made.supervisor.step()
    assert made.slot.generation == 1
