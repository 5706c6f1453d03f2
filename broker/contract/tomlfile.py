"""TOML text to values, and the place in the text where each of them stands.

May import the standard library only. `tomllib` reads the values but forgets where they were; `Places` reads the
same text once more and keeps only that.

Invariants
- `load_toml` returns or raises `EcmError`, whatever the text is.
- `Places` raises for no text; what it cannot follow it leaves out, and the place of what surrounds it is given
  instead. (A text nested too deeply for `load_toml` is not for it.)
- Lines and columns count from 1, columns in characters.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import Any

from broker.contract.errors import EcmError

__all__ = ["KeyPath", "Places", "load_toml", "toml_place"]

KeyPath = tuple[str | int, ...]
"""Keys from the top of the document to a value; elements of arrays by index."""

_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def load_toml(text: str, file: str) -> dict[str, Any]:
    """The values of a TOML document. Raises EcmError `invalid_toml` with line and column in `file`."""
    text = text.removeprefix("\ufeff")  # some editors of Windows write a byte order mark, which TOML has not
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise EcmError("invalid_toml", "arrays or tables nested too deeply", file=file) from error
    except ValueError as error:  # TOMLDecodeError is one; so is a number of thousands of digits
        raise _invalid(str(error), text, file) from error


def _invalid(reason: str, text: str, file: str) -> EcmError:
    line = column = None
    at = _AT.search(reason)
    if at is not None:
        reason = reason[: at.start()]
        if at[1]:
            line, column = int(at[1]), int(at[2])
        else:
            lines = text.rstrip("\n").split("\n")
            line, column = len(lines), len(lines[-1]) + 1
    reason = _DECLARED.sub(lambda match: f"[{'.'.join(re.findall(_QUOTED, match[1]))}]", reason)
    hint = next((hint for start, hint in _HINTS if reason.startswith(start)), None)
    return EcmError(
        "invalid_toml",
        f"not valid TOML: {reason[:1].lower()}{reason[1:]}",
        file=file,
        line=line,
        column=column,
        hint=hint,
    )


_QUOTED = r"['\"]([^'\"]*)['\"]"
_DECLARED = re.compile(r"\((['\"].*?),?\)")  # tomllib writes the path of a table as a tuple

_HINTS = (
    ("Invalid value", 'text needs quotes: key = "value"'),
    ("Expected '=' after a key", 'a line is key = "value", a [table] or a # comment'),
    ("Cannot overwrite a value", "the key stands twice: remove one of them"),
    ("Cannot declare", "the table stands twice: put its keys together"),
    ("Expected newline or end of document", "one key a line; text needs quotes around the whole of it"),
    ("Illegal character '\\n'", "close the text with a quote on the same line"),
    ("Unescaped '\\' in a string", "write single quotes around text with backslashes: 'C:\\mail'"),
)


class Places:
    """Where each key and each value of a TOML document stands."""

    def __init__(self, text: str) -> None:
        self._text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        self._lines = [0] + [match.end() for match in re.finditer("\n", self._text)]
        self._keys: dict[KeyPath, int] = {}
        self._values: dict[KeyPath, int] = {}
        self._tables: dict[KeyPath, int] = {}  # arrays of tables: how many elements so far
        self._scan()

    def __contains__(self, path: KeyPath) -> bool:
        return path in self._keys or path in self._values

    def key(self, path: KeyPath) -> tuple[int, int]:
        """Line and column of a key (a table's header counts as its key), or of the nearest thing around it."""
        return self._nearest(path, self._keys)

    def value(self, path: KeyPath) -> tuple[int, int]:
        """Line and column of a value, or of the nearest thing around it; the top of the document is 1, 1."""
        return self._nearest(path, self._values) if path in self._values else self.key(path)

    def _nearest(self, path: KeyPath, offsets: dict[KeyPath, int]) -> tuple[int, int]:
        for length in range(len(path), 0, -1):
            offset = offsets.get(path[:length])
            if offset is not None:
                line = bisect_right(self._lines, offset)
                return line, offset - self._lines[line - 1] + 1
        return 1, 1

    def _scan(self) -> None:
        position, table, text = 0, (), self._text  # type: int, KeyPath, str
        while (position := _skip(_BLANK_LINES, text, position)) < len(text):
            start = position
            if text[position] == "[":
                double = text.startswith("[[", position)
                path, position = self._key(position + 1 + double, ())
                table = self._enter(path, double)
                self._keys.setdefault(table, start)
                position = _skip(_CLOSING, text, position)
            else:
                position = self._pair(position, table)
            if position <= start:
                return  # not TOML: the caller has the nearest place we know

    def _enter(self, path: KeyPath, double: bool) -> KeyPath:
        """The whole path of a table header: below an array of tables it means its latest element."""
        whole: KeyPath = ()
        for depth, part in enumerate(path):
            whole += (part,)
            if double and depth == len(path) - 1:
                self._tables[whole] = self._tables.get(whole, 0) + 1
            if whole in self._tables:
                whole += (self._tables[whole] - 1,)
        return whole

    def _pair(self, position: int, table: KeyPath) -> int:
        start = position
        path, position = self._key(position, table)
        equals = _EQUALS.match(self._text, position)
        if equals is None:
            return start
        for length in range(len(table) + 1, len(path) + 1):
            self._keys.setdefault(path[:length], start)
        return self._value(equals.end(), path)

    def _key(self, position: int, table: KeyPath) -> tuple[KeyPath, int]:
        """A dotted key at `position`: the path it makes below `table`, and where it ends."""
        path = table
        while (part := _KEY.match(self._text, position)) is not None:
            bare = part[1]
            path += (_unquoted(bare) if bare[0] in "\"'" else bare,)
            position = part.end()
            if not part[2]:
                break
        return path, position

    def _value(self, position: int, path: KeyPath) -> int:
        self._values[path] = position
        opening = self._text[position : position + 1]
        if opening not in ("[", "{"):
            scalar = _SCALAR.match(self._text, position)
            return scalar.end() if scalar else position
        closing, index = "]" if opening == "[" else "}", 0
        position = _skip(_BLANK_LINES, self._text, position + 1)
        while position < len(self._text) and self._text[position] != closing:
            start = position
            position = self._value(position, (*path, index)) if opening == "[" else self._pair(position, path)
            position = _skip(_COMMA, self._text, position)
            index += 1
            if position <= start:
                return position
        return position + 1


def _unquoted(key: str) -> str:
    try:
        return str(tomllib.loads(f"key = {key}")["key"])
    except tomllib.TOMLDecodeError:  # a wrong escape: not TOML, and no name anybody asks for
        return key


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position


_BLANK_LINES = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_COMMA = re.compile(r"(?:[ \t\n,]|#[^\n]*)*")
_CLOSING = re.compile(r"[ \t]*\]{0,2}")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_BASIC, _LITERAL = r'"(?:[^"\\\n]|\\.)*"', r"'[^'\n]*'"
_KEY = re.compile(rf"[ \t]*([A-Za-z0-9_-]+|{_BASIC}|{_LITERAL})[ \t]*(\.?)")
_SCALAR = re.compile(
    rf"""\"\"\"(?:[^\\]|\\.)*?\"{{3,5}}|'''.*?'{{3,5}}|{_BASIC}|{_LITERAL}"""
    r"|\d{4}-\d\d-\d\d[ ]\d\d:\d\d[^\s,\]}#]*|[^\s,\]}#]+",
    re.DOTALL,
)


def toml_place(text: str, dotted_key: str | KeyPath) -> tuple[int, int]:
    """Line and column of a key in a TOML document, or of the nearest table around it.

    `dotted_key` as TOML writes it (`relay.default.port`, `relay."a.b".port`) or as a path. For more than one
    question to the same text make a `Places`.
    """
    path: KeyPath = (
        dotted_key if isinstance(dotted_key, tuple) else tuple(m[1].strip("\"'") for m in _KEY.finditer(dotted_key))
    )
    return Places(text).key(path)
