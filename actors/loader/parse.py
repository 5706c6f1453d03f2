"""CSV: blocks of lines in, columns of cells out.

It may not know what a cell means. Cells stay UTF-8 bytes: a block without quotes is cut by two calls for all its
cells, and numpy proves that every line has as many cells as the header (0.3 us a row of 5 cells; the csv module,
which takes the lines with quotes, needs 1.4 us).

Invariants
- Rows come out in the order of the file, each with the number of its first physical line, counted from 1.
- The csv module alone decides what quotes mean, and it is started at the beginning of a row only; so a stray quote
  costs the rows it really swallows and never moves the boundary of another.
- Every line ends up in a row, in a rejected row, or is blank.
- A row that is not finished at the end of a block is carried into the next one, `LINE_BYTES_MAX` at most.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from actors.loader.columns import Header, read_header
from actors.loader.source import LINE_BYTES_MAX, Block, Source

__all__ = ["CsvFile", "Rejected", "Rows"]

HEADER_BYTES_MAX: Final = 1 << 16
_END: Final = "\x02end of run\n"  # a line no quoted text contains: shows that the csv module stood at a row's beginning
_NEWLINE: Final = 10
_QUOTE: Final = 34
_RETURN: Final = 13

Lines = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used: its first line, why, and what stood there (UTF-8)."""

    line: int
    reason: str
    raw: bytes


@dataclass(slots=True)
class Rows:
    """Rows of one block.

    lines      first line of each row, int64[n], rising
    columns    as many lists as the header has names, each of n cells (UTF-8)
    rejected   rows with too few or too many cells, or with a quote that never ends
    broken     indices of rows with a line break or carriage return inside a cell
    end        offset in the file after these rows, for progress
    """

    lines: Lines
    columns: list[list[bytes]]
    rejected: list[Rejected]
    broken: list[int]
    end: int


class CsvFile:
    """A CSV file of recipients. `header` is read when it is made; `rows` may be called once."""

    def __init__(self, source: Source, email_column: str | None = None) -> None:
        """Raises EcmError: what `Source.blocks` and `read_header` raise."""
        self._path = source.path
        self._blocks = source.blocks()
        first = next(self._blocks)
        text, lines_before, size, lines = _first_row(first.data)
        self.header: Header = read_header(text, source.path, first.first_line + lines_before, email_column)
        self._rest = Block(first.data[size:], first.first_line + lines_before + lines, first.end)
        self._delimiter = ord(self.header.delimiter)
        self._size = source.size

    def rows(self) -> Iterator[Rows]:
        """The rows of the file, some thousand at a time. Raises EcmError as `Source.blocks` does."""
        carried = b""
        block: Block | None = self._rest
        while block is not None:
            following = next(self._blocks, None)
            data = carried + block.data if carried else block.data
            first_line = block.first_line - carried.count(b"\n")
            final = following is None or len(carried) > LINE_BYTES_MAX
            carried = b""
            if data:
                columns = self._even(data)
                if columns is not None:
                    lines = np.arange(first_line, first_line + len(columns[0]), dtype=np.int64)
                    yield Rows(lines, columns, [], [], block.end)
                else:
                    parser = _Uneven(data, first_line, self.header, final=final)
                    yield parser.parse(block.end)
                    carried = data[parser.used :]
            block = following

    def _even(self, data: bytes) -> list[list[bytes]] | None:
        """The columns of a block without quotes in which every line has the right number of cells, else None."""
        width = len(self.header.names)
        if b'"' in data or b"\r" in data or b"\n\n" in data or data.startswith(b"\n"):
            return None
        octets = np.frombuffer(data, np.uint8)
        ends = octets[(octets == self._delimiter) | (octets == _NEWLINE)]
        if len(ends) % width:
            return None
        grid = ends.reshape(-1, width)
        if not ((grid[:, -1] == _NEWLINE).all() and (grid[:, :-1] == self._delimiter).all()):
            return None
        delimiter = self.header.delimiter.encode()
        cells = data.replace(b"\n", delimiter).split(delimiter)
        cells.pop()
        return [cells[index::width] for index in range(width)]


def _first_row(data: bytes) -> tuple[str, int, int, int]:
    """The first row that is not blank: text, lines before it, offset after it, lines it takes."""
    start = blank = 0
    while data[start : data.index(b"\n", start)].strip() == b"":
        start = data.index(b"\n", start) + 1
        blank += 1
    end = data.index(b"\n", start) + 1
    while data.count(b'"', start, end) % 2 and 0 < data.find(b"\n", end) < start + HEADER_BYTES_MAX:
        end = data.index(b"\n", end) + 1
    return data[start:end].decode(), blank, end, data.count(b"\n", start, end)


class _Feed:
    """Lines for the csv module, which asks for more while a row is not finished."""

    def __init__(self, lines: list[str], at: int) -> None:
        self._lines = lines
        self.at = at
        self.ran_out = False

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        if self.at == len(self._lines):
            self.ran_out = True
            raise StopIteration
        self.at += 1
        return self._lines[self.at - 1]


@dataclass(slots=True)
class _Quoted:
    """What the csv module made of the lines it was given."""

    rows: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)  # index of each row's first line in the block
    broken: list[int] = field(default_factory=list)  # indices into `rows`


class _Uneven:
    """A block with quotes, or with lines of another length than the header: the lines are sorted out first."""

    def __init__(self, data: bytes, first_line: int, header: Header, *, final: bool) -> None:
        self._data = data
        self._first_line = first_line
        self._header = header
        self._final = final
        octets = np.frombuffer(data, np.uint8)
        self._ends: Lines = np.flatnonzero(octets == _NEWLINE)
        self._starts: Lines = np.concatenate(([0], self._ends[:-1] + 1))
        self._count = len(self._ends)
        self._dirty = self._suspicious(octets)
        self._cells = self._per_line(octets == ord(header.delimiter)) + 1
        self._taken = np.zeros(self._count, np.bool_)
        self._text: list[str] = []
        self._rejected: list[Rejected] = []
        self._quoted = _Quoted()
        self.used = len(data)  # bytes of the block that became rows; the rest is carried

    def parse(self, end: int) -> Rows:
        """The block's rows in their order, good and rejected; `end` is where the block ends in the file."""
        limit = self._read_dirty()
        width = len(self._header.names)
        plain = ~self._taken & (self._ends > self._starts)
        plain[limit:] = False
        good = plain & (self._cells == width)
        for index in np.flatnonzero(plain & ~good).tolist():
            self._reject_cells(index, index + 1, int(self._cells[index]))
        lines = np.flatnonzero(good)
        columns = self._columns(good)
        broken = self._quoted.broken
        if self._quoted.rows:
            offset = len(lines)
            lines = np.concatenate((lines, np.array(self._quoted.lines, np.int64)))
            for column, cells in zip(columns, zip(*self._quoted.rows, strict=True), strict=True):
                column.extend(map(str.encode, cells))
            broken = [offset + index for index in broken]
            if offset:
                lines, columns, broken = _in_order(lines, columns, broken)
        self._rejected.sort(key=lambda row: row.line)
        return Rows(lines + self._first_line, columns, self._rejected, broken, end)

    def _per_line(self, mask: npt.NDArray[np.bool_]) -> Lines:
        """How many bytes of each line the mask marks."""
        counts: Lines = np.bincount(np.searchsorted(self._ends, np.flatnonzero(mask)), minlength=self._count)
        return counts

    def _suspicious(self, octets: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Lines the csv module must see: those with a quote or a carriage return, and those between two quotes."""
        quotes = self._per_line(octets == _QUOTE)
        inside = (np.cumsum(quotes) - quotes) & 1
        dirty: npt.NDArray[np.bool_] = (quotes > 0) | (inside == 1) | (self._per_line(octets == _RETURN) > 0)
        return dirty

    def _read_dirty(self) -> int:
        """Give the dirty lines to the csv module, run by run; the line from which on the block is carried."""
        at = 0
        dirty_lines = np.flatnonzero(self._dirty)
        while at < self._count:
            place = int(np.searchsorted(dirty_lines, at))
            if place == len(dirty_lines):
                break
            at = int(dirty_lines[place])
            if not self._text:
                self._text = io.StringIO(self._data.decode(), newline="\n").readlines()
            clean = np.flatnonzero(~self._dirty[at:])
            stop = at + int(clean[0]) if len(clean) else self._count
            if self._read_simple(at, stop):
                at = stop
                continue
            at, unfinished = self._read_careful(at)
            if unfinished:
                self.used = int(self._starts[at])
                return at
        return self._count

    def _read_simple(self, start: int, stop: int) -> bool:
        """Read lines that are a row each, as quoted lines nearly always are; False if these are not."""
        lines = self._text[start:stop]
        try:
            rows = list(csv.reader([*lines, _END], delimiter=self._header.delimiter))
        except csv.Error:
            return False
        if len(rows) != len(lines) + 1 or rows.pop() != [_END[:-1]] or any("\r" in line for line in lines):
            return False
        self._taken[start:stop] = True
        width = len(self._header.names)
        if all(len(row) == width for row in rows):
            self._quoted.rows += rows
            self._quoted.lines += range(start, stop)
        else:
            for index, row in enumerate(rows, start):
                self._add(row, index, index + 1)
        return True

    def _read_careful(self, start: int) -> tuple[int, bool]:
        """Read rows from line `start` until one ends before a clean line.

        Return the line after them, and whether the block ended in the middle of the row that begins there.
        """
        begin = start
        while begin < self._count and self._dirty[begin]:
            feed = _Feed(self._text, begin)
            for row in self._reader(feed):
                if row is None or (feed.ran_out and self._final):
                    reason = "a quoted cell that never ends, or a stray carriage return"
                    self._reject(begin, begin + 1, reason)
                    begin += 1
                    break
                if feed.ran_out:
                    return begin, True
                self._add(row, begin, feed.at)
                begin = feed.at
                if begin == self._count or not self._dirty[begin]:
                    break
        return begin, False

    def _reader(self, feed: _Feed) -> Iterator[list[str] | None]:
        """Rows as the csv module reads them; None, and then no more, where it gives up."""
        reader = csv.reader(feed, delimiter=self._header.delimiter)
        while True:
            try:
                yield next(reader)
            except csv.Error:
                yield None
                return
            except StopIteration:
                return

    def _add(self, row: list[str], begin: int, end: int) -> None:
        self._taken[begin:end] = True
        if not row:
            return
        if len(row) != len(self._header.names):
            self._reject_cells(begin, end, len(row))
            return
        if end - begin > 1 or any("\r" in cell for cell in row):
            self._quoted.broken.append(len(self._quoted.rows))
        self._quoted.rows.append(row)
        self._quoted.lines.append(begin)

    def _reject_cells(self, begin: int, end: int, cells: int) -> None:
        wanted = len(self._header.names)
        few = "too few" if cells < wanted else "too many"
        self._reject(begin, end, f"{few} cells: {cells} where the header has {wanted}")

    def _reject(self, begin: int, end: int, reason: str) -> None:
        self._taken[begin:end] = True
        raw = self._data[int(self._starts[begin]) : int(self._ends[end - 1])]
        self._rejected.append(Rejected(self._first_line + begin, reason, raw))

    def _columns(self, good: npt.NDArray[np.bool_]) -> list[list[bytes]]:
        """Cells of the good lines, by column."""
        width = len(self._header.names)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], good, [False]))))
        pieces = [
            self._data[int(self._starts[first]) : int(self._ends[last - 1]) + 1]
            for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        ]
        delimiter = self._header.delimiter.encode()
        cells = b"".join(pieces).replace(b"\n", delimiter).split(delimiter)
        cells.pop()
        return [cells[index::width] for index in range(width)]


def _in_order(
    lines: Lines, columns: list[list[bytes]], broken: list[int]
) -> tuple[Lines, list[list[bytes]], list[int]]:
    """The same rows in the order of the file."""
    order = np.argsort(lines, kind="stable")
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    sequence = order.tolist()
    return lines[order], [[column[i] for i in sequence] for column in columns], sorted(places[broken].tolist())
