"""Finds repeated addresses among any number of rows in little memory: the first row of a key wins.

Entries (key, row number) go into 256 parts by the first byte of the key; the parts lie interleaved in one scratch file
without a name, so nothing can be left behind, and one at a time is read back and sorted. Keys are hashes: the parts
are alike in size. Up to `HELD` entries no file is made at all.

Invariants
- A row is reported if and only if an earlier row has the same 16-byte key.
- Memory is bounded by `HELD` entries plus one part.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt

__all__ = ["HELD", "DuplicateFinder"]

HELD: Final = 1 << 18  # entries in memory: 6 MB
PARTS: Final = 256

Entries = npt.NDArray[np.uint64]  # shape (n, 3): two words of the key, the row number
RowNumbers = npt.NDArray[np.int64]


class DuplicateFinder:
    """Takes the keys of all rows in order, then tells which rows repeat an earlier one. Close it."""

    def __init__(self, directory: Path, held: int = HELD) -> None:
        """directory: where the scratch file goes, if one is needed; it must exist then."""
        self._directory = directory
        self._buffer: Entries = np.empty((held, 3), np.uint64)
        self._filled = 0
        self._rows = 0
        self._found: list[RowNumbers] = []
        self._file: IO[bytes] | None = None
        self._written = 0  # entries in the file
        self._pieces: list[tuple[int, npt.NDArray[np.int64]]] = []  # first entry, and 257 offsets by part

    def add(self, keys: npt.NDArray[np.uint64]) -> None:
        """The keys of the next rows, u8 words of shape (n, 2). Raises OSError (disk full)."""
        while len(keys):
            room = len(self._buffer) - self._filled
            some = keys[:room]
            self._buffer[self._filled : self._filled + len(some), :2] = some
            self._buffer[self._filled : self._filled + len(some), 2] = np.arange(self._rows, self._rows + len(some))
            self._filled += len(some)
            self._rows += len(some)
            keys = keys[room:]
            if self._filled == len(self._buffer):
                self._spill()

    def finish(self, tick: Callable[[float], None] = lambda _share: None) -> RowNumbers:
        """Numbers, rising, of the rows whose key an earlier row has. `tick` is told the share that is done."""
        if self._file is None:
            return np.sort(_repeated(self._buffer[: self._filled]))
        if self._filled:
            self._spill()
        self._buffer = np.empty((0, 3), np.uint64)
        found = self._found
        for part in range(PARTS):
            found.append(_repeated(self._read(part)))
            tick((part + 1) / PARTS)
        return np.sort(np.concatenate(found))

    def close(self) -> None:
        """Give the scratch file back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - closed by `close`
        entries = self._buffer[: self._filled]
        again = _repeated(entries)
        if len(again):  # told apart now: an address in every row of a file must not make one part as large as the file
            self._found.append(again)
            entries = np.delete(entries, again - int(entries[0, 2]), axis=0)
        part = (entries[:, 0] & 0xFF).astype(np.uint8)  # the first byte of the key: words are little-endian
        order = np.argsort(part, kind="stable")
        offsets = np.zeros(PARTS + 1, np.int64)
        np.cumsum(np.bincount(part, minlength=PARTS), out=offsets[1:])
        self._file.write(np.ascontiguousarray(entries[order]).data)
        self._file.flush()
        self._pieces.append((self._written, offsets))
        self._written += len(entries)
        self._filled = 0

    def _read(self, part: int) -> Entries:
        assert self._file is not None
        descriptor = self._file.fileno()
        chunks = []
        for begin, offsets in self._pieces:
            first, last = int(offsets[part]), int(offsets[part + 1])
            chunks.append(os.pread(descriptor, 24 * (last - first), 24 * (begin + first)))
        return np.frombuffer(b"".join(chunks), np.uint64).reshape(-1, 3)


def _repeated(entries: Entries) -> RowNumbers:
    """Row numbers of the entries, given in order of rows, whose key has come before.

    Sorting bare words is vectorised (10 ns each); only entries whose first word occurs twice are looked at closely.
    """
    words = np.sort(entries[:, 0])
    twice = words[1:][words[1:] == words[:-1]]
    if not len(twice):
        return np.empty(0, np.int64)
    twice = np.unique(twice)
    place = np.minimum(np.searchsorted(twice, entries[:, 0]), len(twice) - 1)
    suspects = entries[twice[place] == entries[:, 0]]
    order = np.lexsort((suspects[:, 2], suspects[:, 1], suspects[:, 0]))
    ordered = suspects[order]
    same = (ordered[1:, :2] == ordered[:-1, :2]).all(axis=1)
    numbers: RowNumbers = ordered[1:][same][:, 2].astype(np.int64)
    return numbers
