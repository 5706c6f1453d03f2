"""The header of a recipients file: which character parts the cells, what the columns are called, which has addresses.

Values in, values out; the rules are those of the campaign file's reference (a header is required; names are trimmed,
lower-cased, and every other character than a-z, 0-9 and `_` becomes `_`; two that fall together are an error).
"""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass
from typing import Final

from broker.contract.errors import EcmError
from shm.files.shard import LINE_FIELD

__all__ = [
    "ADDRESS_COLUMNS",
    "COLUMNS_MAX",
    "DELIMITERS",
    "EMAIL",
    "Header",
    "address_column",
    "column_name",
    "read_header",
]

DELIMITERS: Final = ",;\t|"
EMAIL: Final = "email"
ADDRESS_COLUMNS: Final = (EMAIL, "e_mail", "email_address")
COLUMNS_MAX: Final = 1_000  # a header beyond that is a row of something else

_OTHER = re.compile(r"[^a-z0-9_]")


@dataclass(frozen=True, slots=True)
class Header:
    """What the first line of a CSV file says.

    delimiter   one character of `DELIMITERS`
    names       column names in order, unique
    address     index of the column that holds the address
    """

    delimiter: str
    names: tuple[str, ...]
    address: int


def column_name(text: str) -> str:
    """The name of a column as templates use it: `First Name ` is `first_name`."""
    return _OTHER.sub("_", text.strip().lower())


def read_header(text: str, path: str, line: int, email_column: str | None) -> Header:
    """The header in `text`, the first row of the file, which begins on line `line` and may hold quoted line breaks.

    Raises EcmError: no_header, duplicate_column, no_address_column.
    """
    delimiter = _delimiter(text)
    cells = next(csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=False), [])
    if any("@" in cell and "." in cell for cell in cells):
        raise EcmError(
            "no_header",
            "the first line holds an address, where column names belong",
            file=path,
            line=line,
            column=1,
            hint="write a first line such as: email,first_name",
        )
    if len(cells) > COLUMNS_MAX:
        raise EcmError("no_header", f"{len(cells)} columns, at most {COLUMNS_MAX}", file=path, line=line, column=1)
    names = tuple(column_name(cell) or f"column_{number}" for number, cell in enumerate(cells, 1))
    _check_unique(names, cells, path, line)
    return Header(delimiter, names, address_column(names, path, line, email_column))


def address_column(names: tuple[str, ...], path: str, line: int, email_column: str | None) -> int:
    """Index of the column of addresses. Raises EcmError no_address_column."""
    if email_column is not None:
        wanted = column_name(email_column)
        if wanted in names:
            return names.index(wanted)
        near = difflib.get_close_matches(wanted, names, 1)
        raise EcmError(
            "no_address_column",
            f"no column `{wanted}`, which `email_column` names",
            file=path,
            line=line,
            column=1,
            field="email_column",
            hint=f"did you mean `{near[0]}`?" if near else f"the columns are: {_listing(names)}",
        )
    for name in ADDRESS_COLUMNS:
        if name in names:
            return names.index(name)
    raise EcmError(
        "no_address_column",
        "no address column ({})".format(", ".join(f"`{name}`" for name in ADDRESS_COLUMNS)),
        file=path,
        line=line,
        column=1,
        hint=f'name it with `email_column = "..."`; the columns are: {_listing(names)}',
    )


def _listing(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown}, ..." if len(names) > 8 else shown


def _delimiter(text: str) -> str:
    """The character that parts most cells of the header outside quotes; the comma if none does."""
    bare = re.sub(r'"(?:[^"]|"")*"', "", text)
    counts = [bare.count(delimiter) for delimiter in DELIMITERS]
    return DELIMITERS[counts.index(max(counts))]


def _check_unique(names: tuple[str, ...], cells: list[str], path: str, line: int) -> None:
    seen: dict[str, str] = {LINE_FIELD: "the engine's own line number"}
    for name, cell in zip(names, cells, strict=True):
        if name in seen:
            raise EcmError(
                "duplicate_column",
                f"two columns get the name `{name}`: {seen[name]!r} and {cell.strip()!r}",
                file=path,
                line=line,
                column=1,
                field=name,
                hint="rename one of them in the first line",
            )
        seen[name] = cell.strip()
