"""Engine time: the wall clock at the engine's start, carried on by the monotonic clock.

May not: read any clock but the monotonic one (the wall clock is read once, by the broker, and passed in).

Invariants
- Engine time never goes back, whatever happens to the wall clock: it is one word, `base_ns`, plus monotonic time, and
  that word only ever grows.
- All processes of an instance read the same time; monotonic clocks are one per boot.

# offset  0         8         16          24 .. 127
#         | base_ns | wall_ns | mono_ns   | zero                         one record
# writer: broker     base_ns = wall - monotonic, as it now counts; wall_ns, mono_ns: what the clocks said at the start
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shm.live.layout import LANE, Table, record, word_of

if TYPE_CHECKING:
    from shm.arena import Arena

__all__ = ["CLOCK", "TABLES", "EngineClock"]

CLOCK = record([("base_ns", "<i8"), ("wall_ns", "<i8"), ("mono_ns", "<i8")], LANE)
assert word_of(CLOCK, "base_ns") == 0, "layout is read by other processes: raise LAYOUT_VERSION instead"
assert word_of(CLOCK, "mono_ns") == 2

TABLES = (Table("clock", CLOCK, (), "broker"),)

_BASE, _WALL, _MONO = 0, 1, 2
_monotonic_ns = time.monotonic_ns


class EngineClock:
    """Reads engine time; the broker makes it and alone may move it."""

    __slots__ = ("_words",)

    def __init__(self, words: memoryview[int]) -> None:
        self._words = words

    @classmethod
    def create(cls, arena: Arena, wall_ns: int, mono_ns: int) -> EngineClock:
        """Start engine time at `wall_ns` (since the epoch) as of `mono_ns` (monotonic). Broker only, once a start."""
        words = arena.words("clock")
        words[_WALL] = wall_ns
        words[_MONO] = mono_ns
        words[_BASE] = wall_ns - mono_ns
        return cls(words)

    @classmethod
    def attach(cls, arena: Arena) -> EngineClock:
        """Read the clock that the broker made."""
        return cls(arena.words("clock"))

    def now_ns(self) -> int:
        """Return engine time in ns since the epoch."""
        return self._words[_BASE] + _monotonic_ns()

    def now_s(self) -> int:
        """Return engine time in whole seconds since the epoch, rounded down: the unit of ledgers."""
        return (self._words[_BASE] + _monotonic_ns()) // 1_000_000_000

    def at_ns(self, mono_ns: int) -> int:
        """Return the engine time of a monotonic time."""
        return self._words[_BASE] + mono_ns

    def started_ns(self) -> int:
        """Return the engine time at which the broker made the clock."""
        return self._words[_WALL]

    def advance(self, ahead_ns: int) -> None:
        """Move engine time forward by `ahead_ns` >= 0, for every process at once (one store). Broker only."""
        assert ahead_ns >= 0, "engine time never goes back"
        self._words[_BASE] += ahead_ns
