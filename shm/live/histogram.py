"""Latencies, counted in buckets that grow with what they measure: one row per actor, summed by readers.

May not: keep single values; a percentile is exact to a sixteenth.

Invariants
- Bucket b < 32 holds b microseconds; above, each power of two is cut into 16. 384 buckets reach from 0 to 134 s; what
  takes longer is counted in the last one.
- Counts only grow; a reader takes differences.

# offset  0          8                3064
#         | bucket 0 | bucket 1 | ... | bucket 383 |                 row: actor   writer: that actor
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shm.live.layout import LANE, Table

if TYPE_CHECKING:
    from shm.arena import Arena

__all__ = ["BUCKETS", "TABLES", "Histogram", "bucket_of", "lower_us", "percentiles", "sum_rows"]

_SUB = 16  # buckets per power of two
BUCKETS = 384
LIMIT_US = (1 << 27) - 1  # 134.2 s
HISTOGRAM = np.dtype([("counts", "<i8", (BUCKETS,))])
assert HISTOGRAM.itemsize == 3072, "layout is read by other processes: raise LAYOUT_VERSION instead"
assert HISTOGRAM.itemsize % LANE == 0

TABLES = (Table("histogram", HISTOGRAM, ("actors",), "actor"),)


def bucket_of(us: int) -> int:
    """Return the bucket of a duration in microseconds; negative ones count as 0."""
    if us < 2 * _SUB:
        return max(us, 0)
    shift = min(us, LIMIT_US).bit_length() - 5
    return shift * _SUB + (min(us, LIMIT_US) >> shift)


def lower_us(bucket: int) -> int:
    """Return the least duration that a bucket holds, in microseconds; `lower_us(bucket + 1)` is where it ends."""
    if bucket < 2 * _SUB:
        return bucket
    shift, rest = divmod(bucket, _SUB)
    return (_SUB + rest) << (shift - 1)


assert bucket_of(LIMIT_US) == BUCKETS - 1


class Histogram:
    """One actor's row."""

    __slots__ = ("_words",)

    def __init__(self, arena: Arena, row: int) -> None:
        self._words = arena.words("histogram")[row * BUCKETS : (row + 1) * BUCKETS]

    def record(self, us: int) -> None:
        """Count one duration in microseconds (hot: about 0.15 us)."""
        if 32 <= us <= LIMIT_US:
            shift = us.bit_length() - 5
            self._words[(shift << 4) + (us >> shift)] += 1
        else:
            self._words[bucket_of(us)] += 1


def sum_rows(arena: Arena) -> npt.NDArray[np.int64]:
    """Return int64[384]: the counts of all actors together."""
    total: npt.NDArray[np.int64] = arena.table("histogram")["counts"].sum(axis=0, dtype=np.int64)
    return total


def percentiles(counts: npt.NDArray[np.int64], wanted: Sequence[float]) -> list[float | None]:
    """Return the percentiles (0..100) of summed counts in milliseconds, each the middle of its bucket.

    None for each if nothing was counted.
    """
    total = int(counts.sum())
    if total == 0:
        return [None] * len(wanted)
    ends = np.cumsum(counts)
    found: list[float | None] = []
    for percent in wanted:
        rank = max(1, int(np.ceil(total * percent / 100)))
        bucket = int(np.searchsorted(ends, rank))
        found.append((lower_us(bucket) + lower_us(bucket + 1)) / 2000)
    return found
