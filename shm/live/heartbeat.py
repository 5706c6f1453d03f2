"""Who lives: one row per process of the instance, told by the broker and by the process itself.

May not: judge who is late (`broker/supervisor.py` does).

Invariants
- A row has two halves with one writer each, a lane or more apart.
- The actor's half names whom it speaks for: its pid. Until a successor says hello the row still shows what its
  predecessor left, so a reader that waits for a process compares pids before it believes the rest.

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
from typing import TYPE_CHECKING

from shm.live.layout import LANE, Table, record, word_of

if TYPE_CHECKING:
    from shm.arena import Arena

__all__ = [
    "ACTOR_HALF",
    "BROKER",
    "BROKER_HALF",
    "DRAINING",
    "ENDED",
    "LOADER",
    "MONITOR",
    "READY",
    "SENDER",
    "STARTING",
    "TABLES",
    "Heartbeats",
    "Row",
]

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


BROKER, SENDER, LOADER, MONITOR = 1, 2, 3, 4  # kinds; 0: the broker has not said whose row it is
STARTING, READY, DRAINING, ENDED = 1, 2, 3, 4  # states; 0: the actor has not said anything yet


@dataclass(frozen=True, slots=True)
class Row:
    """One process, as the broker and the process itself tell it; all 0 where nobody has said anything.

    kind, index, generation, spawned_pid, spawned_ns, cpus   the broker's half; cpus as in `0,2-3`, empty if not pinned
    pid, starttime, beat_ns, state, error                    the actor's half; starttime is field 22 of /proc/<pid>/stat
    in clock ticks, times are monotonic ns, error says why it could not start
    """

    kind: int
    index: int
    generation: int
    pid: int
    starttime: int
    beat_ns: int
    state: int
    row: int
    spawned_pid: int
    spawned_ns: int
    cpus: str
    error: str


class Heartbeats:
    """Both halves of the table. Which methods a process may call is said by the heading they stand under."""

    __slots__ = ("_actor", "_actor_table", "_broker", "_broker_table")

    def __init__(self, arena: Arena) -> None:
        self._broker = arena.words("heartbeat.broker")
        self._actor = arena.words("heartbeat.actor")
        self._broker_table = arena.table("heartbeat.broker")
        self._actor_table = arena.table("heartbeat.actor")

    # ---- the broker

    def spawned(  # noqa: PLR0917  the words of the row, in its order
        self,
        row: int,
        kind: int,
        index: int,
        generation: int,
        pid: int,
        spawned_ns: int,
        cpus: str = "",
    ) -> None:
        """Say who a row belongs to from now on. The pid is stored last."""
        self._broker[row * _WORDS + _B_PID] = 0
        entry = self._broker_table[row]
        entry["kind"], entry["index"], entry["generation"] = kind, index, generation
        entry["spawned_ns"] = spawned_ns
        entry["cpus"] = cpus.encode("ascii", "replace")[:_CPUS_SIZE]
        self._broker[row * _WORDS + _B_PID] = pid

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
        words[at + _STATE] = STARTING
        words[at + _PID] = pid

    def beat(self, row: int, now_ns: int) -> None:
        """Show life at `now_ns` (monotonic)."""
        self._actor[row * _WORDS + _BEAT] = now_ns

    def state(self, row: int, state: int) -> None:
        """Say what the actor is doing: STARTING, READY, DRAINING or ENDED."""
        self._actor[row * _WORDS + _STATE] = state

    def error(self, row: int, text: str) -> None:
        """Leave the reason for an end behind; the first 96 bytes are kept."""
        self._actor_table[row]["error"] = text.encode("utf-8", "replace")[:_ERROR_SIZE]

    # ---- anybody

    def row(self, row: int) -> Row:
        """Return what both halves of a row say."""
        told, said = self._broker_table[row], self._actor_table[row]
        return Row(
            kind=int(told["kind"]),
            index=int(told["index"]),
            generation=int(told["generation"]),
            pid=int(said["pid"]),
            starttime=int(said["starttime"]),
            beat_ns=int(said["beat_ns"]),
            state=int(said["state"]),
            row=row,
            spawned_pid=int(told["pid"]),
            spawned_ns=int(told["spawned_ns"]),
            cpus=bytes(told["cpus"]).decode("ascii", "replace"),
            error=bytes(said["error"]).decode("utf-8", "replace"),
        )

    def rows(self) -> list[Row]:
        """Return every row of which either half says something, in the order of their numbers."""
        rows = [self.row(row) for row in range(len(self._broker_table))]
        return [row for row in rows if row.kind or row.pid]
