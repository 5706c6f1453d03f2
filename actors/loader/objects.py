"""NDJSON: blocks of lines in, objects out, one a line (`.ndjson`, `.jsonl`, or a file that begins with `{`).

It may not know what a field means beyond which one holds the address. Nested values are kept as they are.

Invariants
- Rows come out in the order of the file, each with the number of its line, counted from 1.
- Every line ends up in a row, in a rejected row, or is blank.
- A row is an object whose names follow the rules of CSV headers and whose values msgpack can hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np

from actors.loader.columns import address_column, column_name
from actors.loader.parse import Lines, Rejected
from actors.loader.source import Block, Source
from shm.files.shard import LINE_FIELD

__all__ = ["NdjsonFile", "Objects"]

SHAPES_MAX: Final = 10_000  # different sets of names that are remembered; a file with more of them is merely slower

Names = tuple[str, ...]


@dataclass(slots=True)
class Objects:
    """Rows of one block.

    lines      line of each row, int64[n], rising
    addresses  what stood in the address field, UTF-8, not yet judged
    rows       the objects, names in the form templates use
    shapes     the names of each row, in order
    rejected   lines that are no such object
    end        offset in the file after these rows, for progress
    """

    lines: Lines
    addresses: list[bytes]
    rows: list[dict[str, Any]]
    shapes: list[Names]
    rejected: list[Rejected]
    end: int


class NdjsonFile:
    """An NDJSON file of recipients. `address` is the name of the address field; `rows` may be called once."""

    def __init__(self, source: Source, email_column: str | None = None) -> None:
        """Raises EcmError: what `Source.blocks` raises, and no_address_column if the first object has none."""
        self._blocks = source.blocks()
        self._first = next(self._blocks)
        self._shapes: dict[Names, Names | str] = {}
        self._decode = json.JSONDecoder(parse_constant=_no_constant).decode
        self.names: Names = self._names_of_first(self._first)
        self.address = self.names[address_column(self.names, source.path, 1, email_column)] if self.names else "email"

    def rows(self) -> Iterator[Objects]:
        """The rows of the file, some thousand at a time. Raises EcmError as `Source.blocks` does."""
        yield self._parse(self._first)
        for block in self._blocks:
            yield self._parse(block)

    def _names_of_first(self, block: Block) -> Names:
        """Names of the first object, by which the address field is chosen; empty if no line of the block is one."""
        for text in block.data.split(b"\n"):
            parsed = self._read(text) if text.strip() else ""
            if not isinstance(parsed, str):
                return parsed[1]
        return ()

    def _parse(self, block: Block) -> Objects:
        lines: list[int] = []
        found = Objects(np.empty(0, np.int64), [], [], [], [], block.end)
        for number, text in enumerate(block.data.split(b"\n"), block.first_line):
            if not text.strip():
                continue
            parsed = self._read(text)
            if isinstance(parsed, str):
                found.rejected.append(Rejected(number, parsed, text))
                continue
            row, names = parsed
            address = row.get(self.address)
            if not isinstance(address, str):
                reason = f"no `{self.address}`" if address is None else f"`{self.address}` is not a text"
                found.rejected.append(Rejected(number, reason, text))
                continue
            lines.append(number)
            found.addresses.append(address.encode())
            found.rows.append(row)
            found.shapes.append(names)
        found.lines = np.array(lines, np.int64)
        return found

    def _read(self, text: bytes) -> tuple[dict[str, Any], Names] | str:
        """The object of a line and its names, or why it cannot be used."""
        try:
            value = self._decode(text.decode())
        except json.JSONDecodeError as error:
            return f"not JSON: {error.msg} at column {error.colno}"
        except (ValueError, RecursionError) as error:
            return f"not JSON: {error}"
        if not isinstance(value, dict):
            return "not an object: a row is {...} with a name for each value"
        if b"\\u" in text and not _encodes(value):
            return "half of a surrogate pair: not a character"
        written = tuple(value)
        names = self._shapes.get(written)
        if names is None:
            names = _normal(written)
            if len(self._shapes) < SHAPES_MAX:
                self._shapes[written] = names
        if isinstance(names, str):
            return names
        return (value if names == written else dict(zip(names, value.values(), strict=True))), names


def _normal(written: Names) -> Names | str:
    """The names in the form templates use, or why they cannot be had."""
    names = tuple(column_name(name) or "_" for name in written)
    for index, name in enumerate(names):
        if name == LINE_FIELD:
            return f"the name `{LINE_FIELD}` is the engine's own"
        if name in names[:index]:
            return f"two names become `{name}`: {written[names.index(name)]!r} and {written[index]!r}"
    return names


def _encodes(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
