"""Rows set aside until a whole file has been read, then given back in the order of their keys, in little memory.

Rows lie packed in a scratch file without a name, in 2,048 parts by the first bits of the key; keys are hashes, so the
parts are alike in size (7,000 rows each of a file of 1 GB), and one at a time is read back and sorted. Up to
`HELD_ROWS` rows no file is made at all.

Invariants
- Every row comes back once, or is counted as a repetition of an earlier row of the file with its key.
- Keys come back in rising order over all batches together.
- Memory is bounded by `HELD_ROWS` and one part; one address in every row of a file does not make a part large.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import repeat
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Final

import msgpack  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import numpy.typing as npt

from actors.loader.packing import Entries, bytes_header
from actors.loader.recipients import Batch

__all__ = ["BATCH_ROWS", "HELD_ROWS", "Aside"]

HELD_ROWS: Final = 1 << 16  # rows in memory: some 10 MB
HELD_BYTES: Final = 32 << 20  # of wide rows fewer are held
BATCH_ROWS: Final = 20_000  # rows that come back at once, so that a transaction is worth its wait for the disk
PART_BITS: Final = 11
PARTS: Final = 1 << PART_BITS

Names = tuple[str, ...]
Row = tuple[bytes, str, int, bytes]  # key, address, number of the names, packed map of the other fields
Packed = list[bytes]

_KEY = itemgetter(0)
_HEAD: Final = b"\x94\xc4\x10"  # an array of four, of which the first is 16 bytes


class Aside:
    """Takes batches packed for a list. `names`: the sets of names that rows refer to by number. Close it."""

    def __init__(self, directory: Path, held: int = HELD_ROWS) -> None:
        """directory: where the scratch file goes, if one is needed; held: rows kept in memory."""
        self._directory = directory
        self._held = held
        self._rows: Packed = []
        self._keys: list[bytes] = []
        self._bytes = 0
        self._repeated = 0  # rows that are not in the file, since one of their key went into it with them
        self._part_of: list[npt.NDArray[np.uint16]] = []
        self._numbers: dict[Names, int] = {}
        self._address_heads = Entries(b"")
        self._fields_heads = Entries(b"", bytes_header)
        self._file: IO[bytes] | None = None
        self._end = 0
        self._spills: list[tuple[int, npt.NDArray[np.uint32]]] = []  # where it begins, and from there its parts
        self._sizes = np.zeros(PARTS, np.int64)  # rows
        self.names: list[Names] = []
        self.rows = 0

    def add(self, batch: Batch) -> None:
        """The next rows. Raises OSError (disk full)."""
        octets = np.ascontiguousarray(batch.keys).view(np.uint8).reshape(-1, 16)
        keys = octets.view("V16").ravel().tolist()
        if len(batch.shapes) == 1:
            shapes: Any = repeat(self._packed_number(batch.shapes[0]), len(keys))
        else:
            shapes = map(self._packed_number, batch.shapes)
        parts = zip(
            repeat(_HEAD, len(keys)),
            keys,
            map(self._address_heads.__getitem__, map(len, batch.addresses)),
            batch.addresses,
            shapes,
            map(self._fields_heads.__getitem__, map(len, batch.records)),
            batch.records,
            strict=True,
        )
        rows = list(map(b"".join, parts))
        self._rows += rows
        self._bytes += sum(map(len, rows))
        self._keys += keys
        first_two = octets.view(">u2")[:, 0]  # parts in order are keys in order
        self._part_of.append((first_two >> (16 - PART_BITS)).astype(np.uint16))
        self.rows += len(keys)
        if len(self._rows) >= self._held or self._bytes >= HELD_BYTES:
            self._spill()

    def parts(self) -> Iterator[tuple[list[Row], int]]:
        """Rows in the order of their keys, the first of each, and how many rows repeated one of them."""
        if self._file is None:
            if self._rows:
                yield _sorted(_unpack(b"".join(self._rows), len(self._rows)))
            return
        self._spill()
        waiting: list[Row] = []
        repeated = self._repeated
        for part in range(PARTS):
            rows, again = _sorted(_unpack(self._read(part), int(self._sizes[part])))
            waiting += rows
            repeated += again
            while len(waiting) >= BATCH_ROWS:
                yield waiting[:BATCH_ROWS], repeated
                waiting, repeated = waiting[BATCH_ROWS:], 0
        yield waiting, repeated

    def close(self) -> None:
        """Give the scratch file back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _packed_number(self, names: Names) -> bytes:
        number = self._numbers.get(names)
        if number is None:
            number = self._numbers[names] = len(self.names)
            self.names.append(names)
        packed: bytes = msgpack.packb(number)
        return packed

    def _spill(self) -> None:
        if not self._rows:
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - closed by `close`
        part_of = np.concatenate(self._part_of)
        order = np.argsort(part_of, kind="stable")
        if len(set(self._keys)) < len(self._keys):
            first_of = np.zeros(len(self._keys), np.bool_)
            first_of[list({key: index for index, key in reversed(list(enumerate(self._keys)))}.values())] = True
            order = order[first_of[order]]
            part_of = part_of[first_of]
            self._repeated += len(self._keys) - len(order)
        rows = [self._rows[index] for index in order.tolist()]
        sizes = np.bincount(part_of, minlength=PARTS)
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
        self._file.write(b"".join(rows))
        self._file.flush()
        self._spills.append((self._end, offsets[np.concatenate(([0], np.cumsum(sizes)))].astype(np.uint32)))
        self._end += int(offsets[-1])
        self._sizes += sizes
        self._rows = []
        self._bytes = 0
        self._keys = []
        self._part_of = []

    def _read(self, part: int) -> bytes:
        assert self._file is not None
        descriptor = self._file.fileno()
        extents = [(start, int(begins[part]), int(begins[part + 1])) for start, begins in self._spills]
        return b"".join(os.pread(descriptor, end - begin, start + begin) for start, begin, end in extents)


def _unpack(packed: bytes, number: int) -> list[Row]:
    # Tuples of plain values are what the garbage collector soon leaves alone: lists cost it 0.2 us a row.
    array = b"\xdd%b%b" % (number.to_bytes(4, "big"), packed)
    return list(msgpack.unpackb(array, use_list=False, max_array_len=number + 4, max_bin_len=len(packed)))


def _sorted(rows: list[Row]) -> tuple[list[Row], int]:
    """The rows by key, of each key the first only, and how many that leaves out."""
    rows.sort(key=_KEY)
    different = len(set(map(_KEY, rows)))
    if different == len(rows):
        return rows, 0
    firsts = [row for index, row in enumerate(rows) if not index or row[0] != rows[index - 1][0]]
    return firsts, len(rows) - different
