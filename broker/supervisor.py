"""Which actors should exist, and what to do about the difference: the policy of births and deaths.

Wanted: one sender per core slice, one loader, one monitor. Every round compares wanted with actual and acts on the
difference. A death is believed only when `waitpid` says so; a silent actor is asked for its stack, then killed, and
keeps its leases until its end is proven.

Invariants
- An actor row of the arena has at most one living process.
- An actor that cannot start at all stops the service; it is not started again for ever.
- A first death is answered at once; back-off begins with the second within `CRASH_LOOP_S`.
- Who lacks a process or memory for an actor tries again: that has stopped no campaign of the other actors.
"""

import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from broker.contract.boot import BOOT_FAILED, Boot
from broker.contract.errors import EcmError
from broker.contract.log import log
from broker.process import Child
from shm.live.heartbeat import ActorState, Heartbeats, Kind

__all__ = ["Slot", "Supervisor"]

SILENCE_S = 5.0  # a loop that beats every 100 ms and was not heard for this long hangs
STARTING_S = 30.0  # imports and attaching on a cold, busy machine
SENDERS_FIRST_S = 2.0  # the other actors start when the senders are ready, or after this at the latest
STACK_S = 1.0  # between asking for the stack and SIGKILL
BLIND_S = 1.0  # a round that comes so late missed the beats itself: a frozen container, a machine that was asleep
CRASH_LOOP_S = 10.0  # two deaths within this time are a loop
BACKOFF_S_MAX = 30.0
FAILED_STARTS_MAX = 3  # deaths in a row before the actor was ever ready


@dataclass(slots=True)
class Slot:
    """A place for one actor: what should run there, and what does."""

    kind: str
    index: int
    row: int
    cpus: tuple[int, ...]
    child: Child | None = None
    generation: int = 0
    started: float = 0.0  # monotonic
    asked: float = 0.0  # monotonic time at which a hung actor was asked for its stack; 0 = not asked
    not_before: float = 0.0
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    failed_starts: int = 0
    unborn: int = 0  # tries in a row for which the system had no process
    served: bool = False  # it was ready once, in whatever life
    was_ready: bool = False
    draining: bool = False  # it says that it is about to end, whoever told it to
    how: str = ""  # how the last process here ended

    @property
    def name(self) -> str:
        """`sender 3`, as in the process title."""
        return f"{self.kind} {self.index}"

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return max(0, self.generation - 1)


class Supervisor:
    """Keeps the wanted actors alive. `on_death(slot)` is called once the end of a process is proven."""

    def __init__(
        self,
        slots: Sequence[Slot],
        heartbeats: Heartbeats,
        boot: Callable[[Slot], Boot],
        on_death: Callable[[Slot], None],
        on_event: Callable[[str, Slot, dict[str, object]], None],
    ) -> None:
        self.slots = list(slots)
        self._heartbeats = heartbeats
        self._boot = boot
        self._on_death = on_death
        self._on_event = on_event
        self.stopping = False
        self._looked = self._seeing_since = time.monotonic()

    def start(self) -> None:
        """Start the senders; the others follow when these are ready, so that a user waits for fewer imports."""
        now = time.monotonic()
        for slot in self.slots:
            if slot.kind == "sender":
                self._spawn(slot, now)
            else:
                slot.not_before = now + SENDERS_FIRST_S

    def ready(self) -> bool:
        """Whether every sender has said that it is ready."""
        return all(slot.was_ready for slot in self.slots if slot.kind == "sender")

    def senders(self) -> list[Slot]:
        """Senders that may be given leases now."""
        senders = [s for s in self.slots if s.kind == "sender" and s.child is not None and s.was_ready]
        return [s for s in senders if not s.asked and not s.draining]

    def state(self, slot: Slot) -> str:
        """starting, ready, draining, hung or dead: the word `ctl stats` shows."""
        if slot.child is None:
            return "dead"
        if slot.asked:
            return "hung"
        if self.stopping or slot.draining:
            return "draining"
        return "ready" if slot.was_ready else "starting"

    def step(self) -> None:
        """One round: bury the dead, deal with the silent, start what is missing.

        Raises EcmError start_failed if an actor cannot start at all.
        """
        now = time.monotonic()
        if now - self._looked > BLIND_S:
            self._seeing_since = now
        self._looked = now
        rows = {row.row: row for row in self._heartbeats.rows()}
        for slot in self.slots:
            child = slot.child
            if child is None:
                if not self.stopping and (now >= slot.not_before or (not slot.generation and self.ready())):
                    self._spawn(slot, now)
                continue
            if child.exit_status is not None:
                self._bury(slot, child, now)
                continue
            row = rows.get(slot.row)
            if row is not None and row.starttime:
                if row.state >= ActorState.READY and not slot.was_ready:
                    slot.was_ready = slot.served = True
                    slot.failed_starts = 0
                    self._on_event("actor.ready", slot, {"seconds": round(now - slot.started, 3)})
                slot.draining = row.state >= ActorState.DRAINING
                self._listen(slot, child, now, row.beat_ns / 1e9)  # one that says it has ended must end, too
            elif now - slot.started > STARTING_S:
                self._listen(slot, child, now, slot.started)

    def _listen(self, slot: Slot, child: Child, now: float, heard: float) -> None:
        silence = now - max(heard, slot.started, self._seeing_since)
        limit = SILENCE_S if slot.was_ready else STARTING_S
        if silence < limit:
            return
        if not slot.asked:
            slot.asked = now
            log.error(
                "actor hung", name=slot.name, pid=child.pid, silent_s=round(silence, 1), action="asked for its stack"
            )
            self._on_event("actor.hung", slot, {"pid": child.pid, "silent_s": round(silence, 1)})
            child.ask_for_stack()
        elif now - slot.asked > STACK_S:
            child.kill()

    def _bury(self, slot: Slot, child: Child, now: float) -> None:
        status = child.exit_status
        child.close()
        slot.child = None
        self._heartbeats.gone(slot.row)
        expected = self.stopping and status == 0
        word = slot.how = _how(status)
        if not expected:
            log.error("actor died", name=slot.name, pid=child.pid, how=word, generation=slot.generation)
        self._on_event("actor.ended" if expected else "actor.died", slot, {"pid": child.pid, "how": word})
        was_ready, slot.was_ready, slot.asked = slot.was_ready, False, 0.0
        self._on_death(slot)
        if self.stopping:
            return
        slot.failed_starts = 0 if was_ready else slot.failed_starts + 1
        if (status == BOOT_FAILED and not was_ready) or slot.failed_starts >= FAILED_STARTS_MAX:
            raise EcmError(
                "start_failed",
                f"{slot.name} cannot start: {word}, {slot.failed_starts} times before it was ready",
                hint="its reason stands in STATE/log/engine.log",
            )
        recent = [t for t in slot.deaths if now - t < CRASH_LOOP_S]
        slot.deaths.append(now)
        slot.not_before = now + min(BACKOFF_S_MAX, 0.5 * 2 ** (len(recent) - 1)) if recent else now

    def _spawn(self, slot: Slot, now: float) -> None:
        slot.generation += 1
        slot.started = now
        slot.asked = 0.0
        slot.was_ready = slot.draining = False
        try:
            slot.child = child = Child(self._boot(slot))
        except OSError as error:
            self._not_born(slot, now, error)
            return
        slot.unborn = 0
        cpus = ",".join(map(str, slot.cpus))
        kind = Kind[slot.kind.upper()]
        self._heartbeats.spawned(slot.row, kind, slot.index, slot.generation, child.pid, time.monotonic_ns(), cpus)
        self._on_event("actor.started", slot, {"pid": child.pid, "generation": slot.generation})

    def _not_born(self, slot: Slot, now: float, error: OSError) -> None:
        """The system has no process, memory or descriptor for it: later, unless it has never had one."""
        slot.unborn += 1
        slot.not_before = now + min(BACKOFF_S_MAX, 0.5 * 2**slot.unborn)
        log.error("actor not started", name=slot.name, reason=error.strerror, again_s=round(slot.not_before - now, 1))
        if slot.unborn >= FAILED_STARTS_MAX and not slot.served:
            raise EcmError(
                "start_failed",
                f"{slot.name} cannot be started: {error.strerror}",
                hint="give this user more processes or memory (`ulimit -u`, the container's pids limit)",
            ) from error

    def kill_all(self) -> None:
        """SIGKILL to every actor that still lives."""
        for slot in self.slots:
            if slot.child is not None:
                slot.child.kill()

    def alive(self) -> list[Slot]:
        """Slots whose process has not been proven dead."""
        return [slot for slot in self.slots if slot.child is not None]


def _how(status: int | None) -> str:
    """How a process ended, in words; `status` as `Child.exit_status`."""
    if status is None or status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal, of which only the first and the last have names
        return f"signal {-status}"
