"""Imports a file into a list that is kept.

The whole file is read, judged and set aside before the list is touched, so a file that cannot be read to its end
changes nothing. The rows lie in a nameless scratch file by the first byte of their key; part by part they are sorted
and merged, so each page of the database is written once however large the list is.

Invariants
- rows = rejected + duplicates + added + updated + unchanged + unsubscribed_kept.
- The first row of an address wins, whatever the order of the parts.
- Batches are idempotent: each is one transaction, and a row merged again is unchanged. An import that was interrupted
  is begun again from the beginning. One transaction for all would make every other writer wait for its end, and a
  list of millions would pass through the log of the database twice.
- A dry run reads, judges and compares everything and changes nothing but the side file of rejected rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from itertools import repeat
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Final

import msgpack  # type: ignore[import-untyped, unused-ignore]
import numpy as np

from actors.loader.faults import explain_errno
from actors.loader.progress import Cancelled, Meter, Progress
from actors.loader.recipients import Batch, RecipientsFile
from actors.loader.rejects import RejectFile
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from broker.store.audience import AudienceStore, Member, Merged
from shm import address as shm_address

__all__ = ["Aside", "import_list", "unsubscribe"]

HELD_ROWS: Final = 1 << 15  # rows in memory before they are set aside: some 10 MB
PARTS: Final = 256

Names = tuple[str, ...]
Row = tuple[bytes, bytes, int, bytes]  # key, address, number of the names, packed map of the other fields


def import_list(
    args: dict[str, Any], progress: Progress, cancelled: Cancelled, *, state: StateDir, now_s: float, job: int = 0
) -> dict[str, Any]:
    """Put the rows of a file into a list.

    args     list, path, email_column (or None), dry_run
    now_s    engine time, seconds
    job      names the side file of rejected rows
    return   list, dry_run, rows, rejected, duplicates, added, updated, unchanged, unsubscribed_kept, rejects_file,
             seconds, rows_per_second
    Raises EcmError for everything that is wrong with the file or the disk.
    """
    name, dry_run = str(args["list"]), bool(args.get("dry_run"))
    meter = Meter(progress, cancelled)
    with explain_errno(state.root):
        rejects = RejectFile(state.lists_jobs / f"rejects-{job}.csv")
        with closing(rejects), closing(Aside(state.root)) as aside:
            with closing(RecipientsFile(args["path"], args.get("email_column"), rejects.add, keeping=True)) as audience:
                meter.phase("reading", audience.size)
                for batch in audience.batches():
                    aside.add(batch)
                    meter.at(batch.end, audience.rows)
            with closing(AudienceStore.open(state.audience_db)) as store:
                merged, duplicates = _merge(store, name, aside, meter, now_s, dry_run, audience.rows, audience.size)
    seconds = meter.seconds
    return {
        "list": name,
        "dry_run": dry_run,
        "rows": audience.rows,
        "rejected": audience.rejected,
        "duplicates": duplicates,
        "added": merged.added,
        "updated": merged.updated,
        "unchanged": merged.unchanged,
        "unsubscribed_kept": merged.unsubscribed_kept,
        "rejects_file": rejects.path,
        "seconds": round(seconds, 3),
        "rows_per_second": round(audience.rows / seconds, 1) if seconds else 0.0,
    }


def unsubscribe(
    args: dict[str, Any], _progress: Progress, _cancelled: Cancelled, *, state: StateDir, now_s: float
) -> dict[str, Any]:
    """Take an address off a list for good. args: list, address. Return: list, address, changed.

    Raises EcmError unknown_list, unknown_recipient.
    """
    name, address = str(args["list"]), str(args["address"])
    with closing(AudienceStore.open(state.audience_db)) as store:
        row = store.get(name)
        key = shm_address.key(address)
        changed = store.unsubscribe(row.id, key, now_s)
        if not changed and not store.knows(row.id, key):
            raise EcmError("unknown_recipient", f"not on the list {name}: {address}", field="address")
    return {"list": name, "address": address, "changed": changed}


def _merge(
    store: AudienceStore, name: str, aside: Aside, meter: Meter, now_s: float, dry_run: bool, rows: int, size: int
) -> tuple[Merged, int]:
    """Merge what was set aside; what became of it, and how many rows repeated an address."""
    found = store.find(name) if dry_run else store.ensure(name, now_s)
    merged, duplicates, done = Merged(), 0, 0
    meter.phase("merging", size)
    for part in filter(None, aside.parts()):
        members = aside.members(part)
        duplicates += len(part) - len(members)
        some = store.merge(found.id if found else None, members, now_s, dry_run=dry_run)
        merged = merged + some
        done += len(part)
        meter.at(size * done // aside.rows, rows)
    return merged, duplicates


class Aside:
    """Accepted rows, set aside until all have been read. Close it."""

    def __init__(self, directory: Path, held: int = HELD_ROWS) -> None:
        """directory: where the scratch file goes, if one is needed; held: rows kept in memory."""
        self._directory = directory
        self._held = held
        self._rows: list[Row] = []
        self._names: list[Names] = []
        self._numbers: dict[Names, int] = {}
        self._file: IO[bytes] | None = None
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(PARTS)]  # offset, length
        self.rows = 0

    def add(self, batch: Batch) -> None:
        """The next rows, packed for a list. Raises OSError (disk full)."""
        keys = np.ascontiguousarray(batch.keys).view("V16").ravel().tolist()
        if len(batch.shapes) == 1:
            shapes: Any = repeat(self._number(batch.shapes[0]), len(keys))
        else:
            shapes = map(self._number, batch.shapes)
        self._rows += zip(keys, batch.addresses, shapes, batch.records, strict=True)
        self.rows += len(keys)
        if len(self._rows) >= self._held:
            self._spill()

    def parts(self) -> Iterator[list[Row]]:
        """The rows of one stretch of keys after another, each sorted by key, those of one key in order of the file."""
        if self._file is None:
            self._rows.sort(key=itemgetter(0))
            yield self._rows
            return
        self._spill()
        for pieces in self._pieces:
            rows: list[Row] = []
            for offset, length in pieces:
                self._file.seek(offset)
                rows += msgpack.unpackb(self._file.read(length), use_list=False)
            rows.sort(key=itemgetter(0))
            yield rows

    def members(self, part: list[Row]) -> list[Member]:
        """The first row of each key, as the store takes them."""
        names = self._names
        if len({row[0] for row in part}) < len(part):
            part = [row for index, row in enumerate(part) if not index or row[0] != part[index - 1][0]]
        return [(key, address.decode(), names[shape], fields) for key, address, shape, fields in part]

    def close(self) -> None:
        """Give the scratch file back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _number(self, names: Names) -> int:
        number = self._numbers.get(names)
        if number is None:
            number = self._numbers[names] = len(self._names)
            self._names.append(names)
        return number

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - closed by `close`
            self._end = 0
        by_part: list[list[Row]] = [[] for _ in range(PARTS)]
        for row in self._rows:
            by_part[row[0][0]].append(row)
        self._file.seek(self._end)
        for part, rows in enumerate(by_part):
            if rows:
                packed = msgpack.packb(rows)
                self._file.write(packed)
                self._pieces[part].append((self._end, len(packed)))
                self._end += len(packed)
        self._file.flush()
        self._rows = []
