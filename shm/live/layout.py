"""What every table of the arena is made of: the lane, the shape and the declaration of a table.

May not: touch memory (`shm/arena.py` does) or know any single table.

Invariants
- Whatever two processes write is at least LANE bytes apart, so no two writers share what a CPU fetches at once.
- A table lists its own fields; every size and offset is derived from it and asserted where it is declared.
- Any change of a layout raises LAYOUT_VERSION: an attaching process refuses another one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["LANE", "LAYOUT_VERSION", "Shape", "Table", "align", "record", "word_of"]

LANE = 128  # bytes: a pair of cache lines, since CPUs fetch lines in pairs
LAYOUT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """How many of everything the arena holds.

    actors  rows, one per process of the instance, the broker's own row 0 included: broker, senders, loader, monitor
    slots   leases that one actor can hold at once
    relays  relays that can be declared
    """

    actors: int
    slots: int = 128
    relays: int = 64

    def __post_init__(self) -> None:
        assert 1 <= self.actors <= 4096, f"actors={self.actors}"
        assert 1 <= self.slots <= 65536, f"slots={self.slots}"
        assert 1 <= self.relays <= 65536, f"relays={self.relays}"


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the arena.

    dims    names of Shape's fields that span it: () is a single record, ("actors", "slots") a record per lease slot
    writer  who stores into it, for people
    """

    name: str
    dtype: np.dtype[np.void]
    dims: tuple[str, ...]
    writer: str

    def shape(self, shape: Shape) -> tuple[int, ...]:
        """Return the numpy shape of this table in an arena of `shape`."""
        return tuple(int(getattr(shape, dim)) for dim in self.dims)

    def size(self, shape: Shape) -> int:
        """Return its size in bytes."""
        size = self.dtype.itemsize
        for length in self.shape(shape):
            size *= length
        return size


def align(size: int, step: int = LANE) -> int:
    """Round `size` up to a multiple of `step`."""
    return -(-size // step) * step


def record(fields: list[tuple[str, str]], itemsize: int) -> np.dtype[np.void]:
    """Build a dtype whose fields follow each other without holes and whose tail, up to `itemsize`, is zero.

    Raises ValueError if the fields do not fit.
    """
    names = [name for name, _ in fields]
    formats: list[npt.DTypeLike] = [form for _, form in fields]
    offsets: list[int] = []
    end = 0
    for form in formats:
        offsets.append(end)
        end += np.dtype(form).itemsize
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize})


def word_of(dtype: np.dtype[np.void], field: str) -> int:
    """Return the index of an eight-byte field in a record seen as `memoryview.cast("q")`."""
    assert dtype.fields is not None
    form, offset = dtype.fields[field][:2]
    assert form.itemsize == 8, f"`{field}` is no word"
    assert offset % 8 == 0, f"`{field}` is not aligned"
    return int(offset) // 8
