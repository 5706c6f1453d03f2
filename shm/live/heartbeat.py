"""Who lives: one row per process of the instance, told by the broker and by the process itself.

May not: judge who is late (`broker/supervisor.py` does).

Invariants
- A row has two halves with one writer each, a lane or more apart.
- The actor's half counts only while its pid is the one in the broker's half: what a predecessor left in a row is
  never taken for a sign of life of its successor.

Row 0 is the broker (which writes both its halves), rows 1..n are senders 0..n-1, then the loader, then the monitor.

broker's half
# offset  0      8       16           24    32           40        104 .. 127
#         | kind | index | generation | pid | spawned_ns | cpus    | zero            row: actor   writer: broker
actor's half
# offset  0     8           16        24      32 .. 127
#         | pid | starttime | beat_ns | state | error text                           row: actor   writer: that actor
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from shm.live.layout import LANE, Table, record, word_of

if TYPE_CHECKING:
    from shm.arena import Arena

__all__ = ["ACTOR_HALF", "BROKER_HALF", "TABLES", "ActorState", "Heartbeats", "Kind", "Row"]

BROKER_HALF = record(
    [("kind", "<i8"), ("index", "<i8"), ("generation", "<i8"), ("pid", "<i8"), ("spawned_ns", "<i8"), ("cpus", "S64")],
    LANE,
)
ACTOR_HALF = record(
    [("pid", "<i8"), ("starttime", "<i8"), ("beat_ns", "<i8"), ("state", "<i8"), ("error", "S96")], LANE
)
assert word_of(BROKER_HALF, "pid") == 3, "layout is read by other processes: raise LAYOUT_VERSION instead"
assert word_of(ACTOR_HALF, "state") == 3

TABLES = (
    Table("heartbeat.broker", BROKER_HALF, ("actors",), "broker"),
    Table("heartbeat.actor", ACTOR_HALF, ("actors",), "actor"),
)

_WORDS = LANE // 8
_B_PID = word_of(BROKER_HALF, "pid")
_PID, _STARTTIME, _BEAT, _STATE = 0, 1, 2, 3
_CPUS_SIZE, _ERROR_SIZE = 64, 96


class Kind(IntEnum):
    """What a process is; 0 is a row nobody uses."""

    BROKER = 1
    SENDER = 2
    LOADER = 3
    MONITOR = 4


class ActorState(IntEnum):
    """What an actor says of itself; 0 means that it has not said anything yet."""

    STARTING = 1
    READY = 2
    DRAINING = 3
    ENDED = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One process.

    pid        0 if not spawned yet; starttime  field 22 of /proc/<pid>/stat in clock ticks, 0 until it said hello
    beat_ns    monotonic time of its last beat, 0 before the first; state  an ActorState or 0
    spawned_ns monotonic; cpus  as in `0,2-3`, empty if not pinned; error  why it could not start, else empty
    """

    kind: int
    index: int
    generation: int
    pid: int
    starttime: int
    beat_ns: int
    state: int
    row: int = 0
    spawned_ns: int = 0
    cpus: str = ""
    error: str = ""


class Heartbeats:
    """Both halves of the table. Which methods a process may call is said by the heading they stand under."""

    __slots__ = ("_actor", "_actor_table", "_broker", "_broker_table")

    def __init__(self, arena: Arena) -> None:
        self._broker = arena.words("heartbeat.broker")
        self._actor = arena.words("heartbeat.actor")
        self._broker_table = arena.table("heartbeat.broker")
        self._actor_table = arena.table("heartbeat.actor")

    # ---- the broker

    def spawned(
        self,
        row: int,
        kind: int,
        index: int,
        generation: int,
        pid: int,
        spawned_ns: int,
        cpus: str = "",
    ) -> None:
        """Say who a row belongs to from now on. The pid is stored last and gives the actor's half its meaning."""
        self._broker[row * _WORDS + _B_PID] = 0
        entry = self._broker_table[row]
        entry["kind"], entry["index"], entry["generation"] = kind, index, generation
        entry["spawned_ns"] = spawned_ns
        entry["cpus"] = cpus.encode("ascii", "replace")[:_CPUS_SIZE]
        self._broker[row * _WORDS + _B_PID] = pid

    def gone(self, row: int) -> None:
        """Say that the row's process is dead: its half no longer counts. Kind and index stay."""
        self._broker[row * _WORDS + _B_PID] = 0

    # ---- the actor, in its own row

    def hello(self, row: int, pid: int, starttime: int) -> None:
        """Take over the row: what a predecessor left is wiped before the pid is stored.

        starttime  field 22 of /proc/<pid>/stat, so that nobody kills another process which got the pid later
        """
        words, at = self._actor, row * _WORDS
        words[at + _PID] = 0
        words[at + _BEAT] = 0
        self._actor_table[row]["error"] = b""
        words[at + _STARTTIME] = starttime
        words[at + _STATE] = ActorState.STARTING
        words[at + _PID] = pid

    def beat(self, row: int, now_ns: int) -> None:
        """Show life at `now_ns` (monotonic)."""
        self._actor[row * _WORDS + _BEAT] = now_ns

    def state(self, row: int, state: int) -> None:
        """Say what the actor is doing (ActorState)."""
        self._actor[row * _WORDS + _STATE] = state

    def error(self, row: int, text: str) -> None:
        """Leave the reason for an end behind; the first 96 bytes are kept."""
        self._actor_table[row]["error"] = text.encode("utf-8", "replace")[:_ERROR_SIZE]

    # ---- anybody

    def row(self, row: int) -> Row | None:
        """Return what is known of a row, None if it never belonged to a process."""
        told = self._broker_table[row]
        if not told["kind"]:
            return None
        pid = int(told["pid"])
        said = self._actor_table[row]
        spoke = pid != 0 and int(said["pid"]) == pid
        return Row(
            kind=int(told["kind"]),
            index=int(told["index"]),
            generation=int(told["generation"]),
            pid=pid,
            starttime=int(said["starttime"]) if spoke else 0,
            beat_ns=int(said["beat_ns"]) if spoke else 0,
            state=int(said["state"]) if spoke else 0,
            row=row,
            spawned_ns=int(told["spawned_ns"]),
            cpus=bytes(told["cpus"]).decode("ascii", "replace"),
            error=bytes(said["error"]).decode("utf-8", "replace") if spoke else "",
        )

    def rows(self) -> list[Row]:
        """Return all rows that belong to a process, in the order of their numbers."""
        found = (self.row(row) for row in range(len(self._broker_table)))
        return [row for row in found if row is not None]
