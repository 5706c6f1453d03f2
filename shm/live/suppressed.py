"""Who must not be mailed any more, as a log that every sender follows without asking anybody.

May not: decide who is suppressed; the store did, and committed, before an entry gets here.

Invariants
- Append only. An entry is stored before `count` moves past it; an entry that can be seen never changes.
- Entry n is the store's suppression change number `first_position + n`: the log has no holes.
- Segments hold 65,536 entries; segment k (from 0) is made, allocated in full, before `count` reaches into it. Their
  names derive from the arena's, so that the next broker can remove those of a crashed one.

header, in the arena
# offset  0       8                16 .. 127
#         | count | first_position | zero                one record                       writer: broker, count last
entry, in segments `<arena>.s1`, `<arena>.s2`, ...
# offset  0       8    12     16           32
#         | scope | op | kind | key        |             scope 0 = every campaign        writer: broker
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shm.live.layout import LANE, Table, record, word_of
from shm.segment import Segment

if TYPE_CHECKING:
    from shm.arena import Arena

__all__ = ["ADD", "ENTRY", "REMOVE", "SEGMENT_ENTRIES", "TABLES", "Entries", "SuppressionLog", "SuppressionReader"]

SEGMENT_ENTRIES = 65_536
HEADER = record([("count", "<i8"), ("first_position", "<i8")], LANE)
ENTRY = np.dtype([("scope", "<i8"), ("op", "<i4"), ("kind", "<i4"), ("key", "<u8", (2,))])
assert word_of(HEADER, "first_position") == 1, "layout is read by other processes: raise LAYOUT_VERSION instead"
assert ENTRY.itemsize == 32
assert ENTRY.fields is not None
assert ENTRY.fields["key"][1] == 16

TABLES = (Table("suppressed", HEADER, (), "broker"),)

ADD, REMOVE = 1, 2
_COUNT, _FIRST = 0, 1

Entries = npt.NDArray[np.void]  # of ENTRY, one dimension


def _segment_name(arena: Arena, index: int) -> str:
    """Return the name of segment `index` (from 0)."""
    return f"{arena.name.lstrip('/')}.s{index + 1}"


def _entries(segment: Segment) -> Entries:
    return np.frombuffer(segment.buf, ENTRY, SEGMENT_ENTRIES)


class _Segments:
    """The segments of one log that this process has mapped, in order."""

    __slots__ = ("_arena", "_segments", "_views", "_words")

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._words = arena.words("suppressed")
        self._segments: list[Segment] = []
        self._views: list[Entries] = []

    @property
    def first_position(self) -> int:
        """Return the store's number of entry 0."""
        return self._words[_FIRST]

    def _keep(self, segment: Segment) -> None:
        self._segments.append(segment)
        self._views.append(_entries(segment))

    def close(self) -> None:
        """Let go of the segments; arrays handed out stay valid until they are dropped."""
        self._views.clear()
        while self._segments:
            self._segments.pop().close()


class SuppressionLog(_Segments):
    """The broker's end: the only writer."""

    __slots__ = ()

    @classmethod
    def create(cls, arena: Arena, first_position: int) -> SuppressionLog:
        """Begin an empty log whose first entry will be the store's change number `first_position`."""
        log = cls(arena)
        log._words[_COUNT] = 0
        log._words[_FIRST] = first_position
        return log

    @property
    def count(self) -> int:
        """Return the number of entries."""
        return self._words[_COUNT]

    @property
    def position(self) -> int:
        """Return the store's number of the last entry; first_position - 1 while there is none."""
        return self._words[_FIRST] + self._words[_COUNT] - 1

    def append(self, entries: Entries) -> None:
        """Append entries (dtype ENTRY) in the order of their store numbers; readers see them when it returns.

        2,000,000 in one call take about 50 ms and 64 MB of /dev/shm. Raises ShmFull: then readers see what fitted
        into the segments before, `count` says how much, and the rest may be appended again later.
        """
        done, total = 0, len(entries)
        while done < total:
            count = self._words[_COUNT]
            index, offset = divmod(count, SEGMENT_ENTRIES)
            if index == len(self._views):
                self._keep(Segment.create(_segment_name(self._arena, index), SEGMENT_ENTRIES * 32, self._arena.owner()))
            n = min(total - done, SEGMENT_ENTRIES - offset)
            self._views[index][offset : offset + n] = entries[done : done + n]
            self._words[_COUNT] = count + n
            done += n


class SuppressionReader(_Segments):
    """A sender's or the loader's end."""

    __slots__ = ()

    def count(self) -> int:
        """Return the number of entries."""
        return self._words[_COUNT]

    def count_word(self) -> memoryview[int]:
        """Return the one word that `count` reads, in place: compared before each write (0.03 us)."""
        return self._words[_COUNT : _COUNT + 1]

    def index_after(self, position: int) -> int:
        """Return the index of the first entry later than the store's change number `position`.

        Raises ValueError if the log begins later than that, so that changes between would be missed.
        """
        index = position + 1 - self._words[_FIRST]
        if index < 0:
            raise ValueError(f"the log begins at change {self._words[_FIRST]}, later than {position} + 1")
        return index

    def since(self, n: int) -> list[Entries]:
        """Return the entries from index n up to the present count, as views in order; one per segment touched.

        Raises FileNotFoundError if the engine has ended and removed its segments before they were mapped here.
        """
        count = self._words[_COUNT]
        views: list[Entries] = []
        while n < count:
            index, offset = divmod(n, SEGMENT_ENTRIES)
            while index >= len(self._views):
                self._keep(Segment.open(_segment_name(self._arena, len(self._views))))
            end = min(count - index * SEGMENT_ENTRIES, SEGMENT_ENTRIES)
            views.append(self._views[index][offset:end])
            n = index * SEGMENT_ENTRIES + end
        return views
