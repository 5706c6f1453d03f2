"""Counts an audience: repeated addresses and suppressed ones, for a snapshot and for a check alike.

Invariants
- The position of the last suppression change is noted before the suppressions are read, so a change in between is
  looked at twice and never missed.
- A row is a duplicate, suppressed, or neither; of a suppressed address the first row is suppressed and the others
  are duplicates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from actors.loader.duplicates import DuplicateFinder, RowNumbers
from broker.store import suppression

__all__ = ["Census", "Result", "Silenced"]


class Silenced:
    """The suppressed addresses as of one moment. position: of the last change known to be among them."""

    def __init__(self, store_db: Path) -> None:
        """Raises EcmError io_failed if the store cannot be read."""
        self.position = 0
        self._keys = np.empty((0, 2), np.uint64)
        if store_db.exists():
            self.position = suppression.last_position(store_db)
            keys = suppression.keys(store_db)
            self._keys = keys[np.lexsort((keys[:, 1], keys[:, 0]))]

    def among(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which of the keys, u8 words of shape (n, 2), are suppressed."""
        if not len(self._keys):
            return np.zeros(len(keys), np.bool_)
        first = self._keys[:, 0]
        place = np.minimum(np.searchsorted(first, keys[:, 0]), len(first) - 1)
        found: npt.NDArray[np.bool_] = (self._keys[place] == keys).all(axis=1)
        # Keys are hashes: two that share the first word and not the second are a curiosity, but a person's wish.
        for index in np.flatnonzero(~found & (first[place] == keys[:, 0])).tolist():
            last = int(np.searchsorted(first, keys[index, 0], side="right"))
            found[index] = bool((self._keys[place[index] : last, 1] == keys[index, 1]).any())
        return found


@dataclass(frozen=True, slots=True)
class Result:
    """Rows that are out from the beginning: numbers, rising, none in both."""

    duplicates: RowNumbers
    suppressed: RowNumbers


class Census:
    """Takes the keys of all rows in order."""

    def __init__(self, silenced: Silenced, scratch: Path) -> None:
        """scratch: an existing directory for a nameless file, if there are many rows."""
        self._silenced = silenced
        self._finder = DuplicateFinder(scratch)
        self._hits: list[RowNumbers] = []
        self.rows = 0

    def add(self, keys: npt.NDArray[np.uint64]) -> None:
        """The keys of the next rows, u8 words of shape (n, 2). Raises OSError (disk full)."""
        self._finder.add(keys)
        hits = np.flatnonzero(self._silenced.among(keys))
        if len(hits):
            self._hits.append(hits + self.rows)
        self.rows += len(keys)

    def finish(self, tick: Callable[[float], None] = lambda _share: None) -> Result:
        """What was found; `tick` is told the share that is done. Raises OSError."""
        duplicates = self._finder.finish(tick)
        hits = np.concatenate(self._hits) if self._hits else np.empty(0, np.int64)
        return Result(duplicates, np.setdiff1d(hits, duplicates, assume_unique=True))

    def close(self) -> None:
        """Give the scratch file back."""
        self._finder.close()
