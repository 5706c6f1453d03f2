"""What a starting actor is told, and how it answers by exit code.

The broker builds one `Boot` per process it spawns and `actors/runtime.py` unpacks it: both sides import this
module, so it holds plain values and uses the standard library alone (it is pickled through `multiprocessing`'s
spawn).  It decides nothing.

- A `Boot` names exactly one life of one process: (start id, row, generation) is never used twice.
- Secrets travel in `settings` for senders only; the loader and the monitor get the public map.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["BOOT_FAILED", "CRASHED", "DRAINED", "Boot", "process_starttime"]

DRAINED = 0  # exit code: asked to end, and ended
CRASHED = 1  # exit code: met something it has no rule for; start it again
BOOT_FAILED = 3  # exit code: cannot start at all (lock held, arena foreign); starting it again would not help


@dataclass(frozen=True, slots=True)
class Boot:
    """One actor's birth certificate.

    kind, index       "sender" 0..n-1, "loader" 0, "monitor" 0
    row               its row in every table of the arena (0 is the broker)
    generation        counts the births in this row, from 1
    state_dir         STATE, absolute
    start_id          12 hex digits: this start of the engine; messages that carry another are dropped
    instance          32 hex digits: this state directory; stands in the headers of files
    arena_name        name of the arena to attach
    broker_pid        the parent; when it is no longer the parent, the broker is dead
    broker_starttime  field 22 of /proc/<pid>/stat, so that a reused pid is not taken for the broker
    cpus              cores to be pinned to; empty = wherever the system likes
    settings          `Settings.to_map()`
    """

    kind: str
    index: int
    row: int
    generation: int
    state_dir: str
    start_id: str
    instance: str
    arena_name: str
    broker_pid: int
    broker_starttime: int
    cpus: list[int] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What people read: "sender 3"."""
        return f"{self.kind} {self.index}"

    @property
    def identity(self) -> bytes:
        """The ZeroMQ identity: b"sender-3.1" (kind, index, generation)."""
        return f"{self.kind}-{self.index}.{self.generation}".encode()


def process_starttime(pid: int) -> int:
    """When the process began, in clock ticks since boot (field 22 of /proc/<pid>/stat); 0 if there is none.

    With the pid it names a process for good: pids are used again, pairs are not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # The second field is the program's name in parentheses and may hold anything, ")" and spaces included.
    return int(stat[stat.rindex(b")") + 2 :].split()[19])
