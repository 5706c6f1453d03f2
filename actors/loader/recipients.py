"""Who a campaign or a list is offered: rows of a file, judged, keyed and packed, a batch at a time.

Here the two kinds of file become one: CSV arrives in columns, NDJSON in objects, and both leave as `Batch`. It may not
know whether the rows go to shards or into a list, nor what templates make of them.

Invariants
- rows = accepted + rejected, at every moment; a rejected row has been handed to `reject`.
- A record for a shard holds the address, tidied, under the name of its column; what is kept in a list has it apart,
  and the list calls it `email`.
- Memory does not depend on the size of the file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, Final, Protocol

import msgpack  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import numpy.typing as npt

from actors.loader.addresses import clean_column, keys_of
from actors.loader.columns import EMAIL
from actors.loader.objects import NdjsonFile, Objects
from actors.loader.packing import LINE_MAX, RecordPacker
from actors.loader.parse import CsvFile, Lines, Rejected, Rows
from actors.loader.source import Source
from broker.contract.errors import EcmError
from shm.files.shard import LINE_FIELD

__all__ = ["Audience", "Batch", "RecipientsFile", "lacking"]

FIELDS_MAX: Final = 10_000
NDJSON_SUFFIXES: Final = (".ndjson", ".jsonl")

Names = tuple[str, ...]


@dataclass(slots=True)
class Batch:
    """Accepted rows, in order.

    lines      where each row begins in its source, int64[n]; for a list, its number among the rows read
    addresses  UTF-8; empty where the source is a list, which packs them itself
    keys       u8 words of shape (n, 2) (shm/address.py)
    records    a msgpack map each
    shapes     the names in each record; one entry for all if they are the same
    odd        indices of rows a template may trip over: a line break in a text, a name that is lacking
    end        offset in the source after these rows, for progress
    """

    lines: Lines
    addresses: list[bytes]
    keys: npt.NDArray[np.uint64]
    records: list[bytes]
    shapes: list[Names]
    odd: Sequence[int]
    end: int


def lacking(shape: Names, wanted: frozenset[str]) -> bool:
    """Whether a row with these names lacks one that templates use."""
    return not wanted.issubset(shape)


class Audience(Protocol):
    """Where rows come from, a file or a list.

    names     every name a row may have; address  the one that holds the address
    file      for messages, None for a list;      size  in the unit of `Batch.end`, for progress
    rows      rows seen so far, rejected ones included; rejected  those
    wanted    names the templates use, for `Batch.odd`; set it before `batches`
    """

    file: str | None
    size: int
    rows: int
    rejected: int
    wanted: frozenset[str]

    @property
    def names(self) -> list[str]: ...

    @property
    def address(self) -> str: ...

    def batches(self) -> Iterator[Batch]:
        """The accepted rows, once. Raises EcmError."""


class RecipientsFile:
    """A file of recipients, as `Audience`; the names of an NDJSON file are those of its objects so far. Close it."""

    def __init__(
        self, path: str, email_column: str | None, reject: Callable[[list[Rejected]], None], *, keeping: bool = False
    ) -> None:
        """keeping: pack for a list (no `_line`, the address apart from the map), not for a shard.

        Raises EcmError for a file that cannot be read as recipients, with file, line, column and hint.
        """
        self.source = Source(path)
        self.file: str | None = path
        self.size = self.source.size
        self.rows = 0
        self.rejected = 0
        self._reject = reject
        self._keeping = keeping
        self._csv: CsvFile | None = None
        self._objects: NdjsonFile | None = None
        self.wanted: frozenset[str] = frozenset()
        try:
            if path.lower().endswith(NDJSON_SUFFIXES) or self.source.first_byte == b"{":
                self._objects = NdjsonFile(self.source, email_column)
                self._address = self._objects.address
                written = self._objects.names or (EMAIL,)
            else:
                self._csv = CsvFile(self.source, email_column)
                header = self._csv.header
                self._address = header.names[header.address]
                written = header.names
        except BaseException:
            self.source.close()
            raise
        if keeping and EMAIL in written and self._address != EMAIL:
            self.source.close()
            raise EcmError(
                "duplicate_column",
                f"a list keeps the address as `{EMAIL}`, which is another column here",
                file=path,
                field=EMAIL,
                hint=f"rename the column `{EMAIL}`, or use it as the address",
            )
        self._named: dict[str, None] = dict.fromkeys(written)

    def close(self) -> None:
        """Give the file back."""
        self.source.close()

    @property
    def names(self) -> list[str]:
        return list(self._named)

    @property
    def address(self) -> str:
        return self._address

    def batches(self) -> Iterator[Batch]:
        """The accepted rows. Raises EcmError: what `Source.blocks` raises; file_empty if there is no row at all."""
        if self._csv is not None:
            yield from self._csv_batches(self._csv)
        elif self._objects is not None:
            yield from self._object_batches(self._objects)
        if not self.rows:
            raise EcmError("file_empty", "the file has a header and no rows", file=self.source.path, line=1)

    def _csv_batches(self, file: CsvFile) -> Iterator[Batch]:
        header = file.header
        place = header.address
        names = list(header.names)
        others = names[:place] + names[place + 1 :]
        packer = RecordPacker(others if self._keeping else names, numbered=not self._keeping)
        shape: Names = (EMAIL, *others) if self._keeping else header.names
        all_odd = lacking(shape, self.wanted)
        for rows in file.rows():
            columns, addresses = self._judge_rows(rows, place)
            self._accept(rows.lines)
            kept = columns[:place] + columns[place + 1 :] if self._keeping else columns
            records = packer.pack(rows.lines, kept)
            odd = range(len(addresses)) if all_odd else rows.broken
            yield Batch(rows.lines, addresses, keys_of(addresses), records, [shape], odd, rows.end)

    def _judge_rows(self, rows: Rows, address: int) -> tuple[list[list[bytes]], list[bytes]]:
        """Columns and addresses of the rows whose address is one; `rows.lines` and `broken` are cut down likewise."""
        columns = rows.columns
        addresses, bad = clean_column(columns[address])
        if bad:
            width = len(columns)
            for index, reason in bad.items():
                cells = [columns[column][index] for column in range(width)]
                rows.rejected.append(Rejected(int(rows.lines[index]), reason, _csv_line(cells)))
            keep = np.ones(len(addresses), np.bool_)
            keep[list(bad)] = False
            places = np.cumsum(keep) - 1
            rows.broken = [int(places[index]) for index in rows.broken if keep[index]]
            mask = keep.tolist()
            columns = [list(compress(column, mask)) for column in columns]
            addresses = list(compress(addresses, mask))
            rows.lines = rows.lines[keep]
        self._count_rejected(rows.rejected)
        columns[address] = addresses
        return columns, addresses

    def _object_batches(self, file: NdjsonFile) -> Iterator[Batch]:
        for found in file.rows():
            addresses, bad = clean_column(found.addresses)
            keep = [index not in bad for index in range(len(addresses))]
            for index, reason in bad.items():
                raw = _json_line(found.rows[index])
                found.rejected.append(Rejected(int(found.lines[index]), reason, raw))
            records = self._pack_objects(found, addresses, keep)
            self._count_rejected(found.rejected)
            lines = found.lines[np.array(keep, np.bool_)]
            addresses = list(compress(addresses, keep))
            shapes = list(compress(found.shapes, keep))
            self._accept(lines)
            odd = [
                index
                for index, (record, shape) in enumerate(zip(records, shapes, strict=True))
                if lacking(shape, self.wanted) or b"\n" in record or b"\r" in record
            ]
            yield Batch(lines, addresses, keys_of(addresses), records, shapes, odd, found.end)

    def _pack_objects(self, found: Objects, addresses: list[bytes], keep: list[bool]) -> list[bytes]:
        """A record a row that is kept; a row that msgpack cannot hold is rejected (`keep` is changed)."""
        records: list[bytes] = []
        pack = msgpack.Packer().pack
        own = {EMAIL, self.address}
        for index, (line, row) in enumerate(zip(found.lines.tolist(), found.rows, strict=True)):
            if not keep[index]:
                continue
            row[self.address] = addresses[index].decode()
            if self._keeping:
                record = {name: value for name, value in row.items() if name not in own}
                found.shapes[index] = (EMAIL, *record)
            else:
                record = {LINE_FIELD: line, **row}
            self._named.update(dict.fromkeys(found.shapes[index]))
            if len(self._named) > FIELDS_MAX:
                raise EcmError(
                    "invalid_value",
                    f"more than {FIELDS_MAX} different names in its objects",
                    file=self.source.path,
                    line=line,
                    hint="are values used as names?",
                )
            try:
                records.append(pack(record))
            except (OverflowError, ValueError) as error:
                keep[index] = False
                pack = msgpack.Packer().pack  # the other holds half a map
                found.rejected.append(Rejected(line, f"a value cannot be kept: {error}", _json_line(row)))
        return records

    def _accept(self, lines: Lines) -> None:
        self.rows += len(lines)
        if len(lines) and lines[-1] > LINE_MAX:
            raise EcmError("invalid_value", f"more than {LINE_MAX} lines", file=self.source.path)

    def _count_rejected(self, rejected: list[Rejected]) -> None:
        if rejected:
            self.rows += len(rejected)
            self.rejected += len(rejected)
            rejected.sort(key=lambda row: row.line)
            self._reject(rejected)


def _csv_line(cells: list[bytes]) -> bytes:
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="").writerow([cell.decode() for cell in cells])
    return line.getvalue().encode()


def _json_line(row: dict[str, Any]) -> bytes:
    """The row as a line of JSON, for the side file."""
    return json.dumps(row, ensure_ascii=False, default=str).encode(errors="replace")
