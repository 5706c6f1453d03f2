"""What went wrong, once per distinct text: readable after the process died, and a storm of one error takes one record.

May not: replace the log; it says what to look for there.

Invariants
- One row of 16 records per actor, written by that actor alone.
- A record counts while `count` is not 0. To take a record over, the writer stores count 0, then the rest, then count.
- When all records are taken, the one that was last seen longest ago gives way.

# offset  0       8          16        24           224 .. 255
#         | count | first_ns | last_ns | text       | zero            row: (actor, record)   writer: that actor
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shm.live.layout import Table, record, word_of

if TYPE_CHECKING:
    from shm.arena import Arena

__all__ = ["FAULT", "RECORDS", "TABLES", "TEXT_SIZE", "Fault", "FaultTable"]

RECORDS = 16
TEXT_SIZE = 200
_SIZE = 256
FAULT = record(
    [
        (f"{name}_{i}", form)
        for i in range(RECORDS)
        for name, form in (
            ("count", "<i8"),
            ("first_ns", "<i8"),
            ("last_ns", "<i8"),
            ("text", f"S{TEXT_SIZE}"),
            ("zero", "V32"),
        )
    ],
    RECORDS * _SIZE,
)
assert word_of(FAULT, "last_ns_0") == 2, "layout is read by other processes: raise LAYOUT_VERSION instead"
assert word_of(FAULT, "count_1") == _SIZE // 8

TABLES = (Table("faults", FAULT, ("actors",), "actor"),)

_WORDS = _SIZE // 8
_COUNT, _FIRST, _LAST = 0, 1, 2
_TEXT = 24  # bytes from the start of a record


@dataclass(frozen=True, slots=True)
class Fault:
    """One distinct error of one actor. Times are engine time in ns."""

    row: int
    count: int
    first_ns: int
    last_ns: int
    text: str


class FaultTable:
    """The faults of all actors. Each notes its own, anybody reads."""

    __slots__ = ("_actors", "_bytes", "_words")

    def __init__(self, arena: Arena) -> None:
        self._actors = arena.shape.actors
        self._words = arena.words("faults")
        self._bytes = self._words.cast("B")

    def note(self, row: int, text: str, now_ns: int) -> None:
        """Count an error of the actor in `row`; the first 200 bytes of its text tell it from others."""
        short = text.encode("utf-8", "replace")[:TEXT_SIZE].ljust(TEXT_SIZE, b"\0")
        words = self._words
        oldest, oldest_ns = 0, -1
        for index in range(RECORDS):
            at = (row * RECORDS + index) * _WORDS
            count = words[at + _COUNT]
            if count and self._bytes[at * 8 + _TEXT : at * 8 + _TEXT + TEXT_SIZE] == short:
                words[at + _LAST] = now_ns
                words[at + _COUNT] = count + 1
                return
            seen_ns = words[at + _LAST] if count else 0
            if oldest_ns < 0 or seen_ns < oldest_ns:
                oldest, oldest_ns = at, seen_ns
        words[oldest + _COUNT] = 0
        self._bytes[oldest * 8 + _TEXT : oldest * 8 + _TEXT + TEXT_SIZE] = short
        words[oldest + _FIRST] = now_ns
        words[oldest + _LAST] = now_ns
        words[oldest + _COUNT] = 1

    def read(self) -> list[Fault]:
        """Return all faults, by row, the latest first; a record that is being taken over just now is left out."""
        found = [fault for row in range(self._actors) for fault in self._row(row)]
        found.sort(key=lambda fault: (fault.row, -fault.last_ns))
        return found

    def _row(self, row: int) -> list[Fault]:
        found = []
        for index in range(RECORDS):
            at = (row * RECORDS + index) * _WORDS
            count, first_ns, last_ns = self._words[at : at + 3].tolist()
            text = bytes(self._bytes[at * 8 + _TEXT : at * 8 + _TEXT + TEXT_SIZE]).rstrip(b"\0")
            if 0 < count <= self._words[at + _COUNT]:
                found.append(Fault(row, count, first_ns, last_ns, text.decode("utf-8", "replace")))
        return found
