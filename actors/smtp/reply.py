"""SMTP replies: bytes in, values out (RFC 5321 4.2, enhanced status codes RFC 3463 and 2034).

No socket, no clock, no opinion: what a reply means for a recipient is said in `outcome`.

Invariants
- What is fed in pieces, cut at any byte, gives the same replies as the whole.
- A line that is no reply line, or a reply beyond the caps, raises ProtocolError; after it the parser is of no more use.
- `text` is one line of printable characters, at most TEXT_MAX of them: it can go to a file or a terminal as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "LINE_MAX",
    "REPLY_MAX",
    "TEXT_MAX",
    "ProtocolError",
    "Reply",
    "ReplyParser",
    "legible",
    "read_ok",
    "read_text",
]

LINE_MAX = 8192  # bytes a line, its LF not counted; RFC 5321 4.5.3.1.5 says 512, real servers write more
REPLY_MAX = 4 * LINE_MAX  # bytes a reply: bounds memory when continuation lines never end
TEXT_MAX = 1024  # characters of a reply that are worth keeping

Enhanced = tuple[int, int, int]

_LINE_RE = re.compile(rb"([2-5]\d\d)(?:([ -])(.*))?", re.DOTALL)
_ENHANCED_RE = re.compile(rb"([245])\.(\d{1,3})\.(\d{1,3})(?:[ \t]+|$)")
_SPOKEN_RE = re.compile(r"\s*([2-5]\d\d)(?:[ -]|$)(.*)", re.DOTALL)

# The statuses of nearly all accepted messages, without a regular expression.
_USUAL: dict[bytes, Enhanced] = {b"2.0.0 ": (2, 0, 0), b"2.1.0 ": (2, 1, 0), b"2.1.5 ": (2, 1, 5), b"2.6.0 ": (2, 6, 0)}


_DIGITS = frozenset({b"2", b"4", b"5"})  # an enhanced status begins with one of them
_new = tuple.__new__


class ProtocolError(Exception):
    """The peer sent something that is no reply; one line says what."""


class Reply(NamedTuple):
    """One reply. (A named tuple: made once a message on the hot path, at a third of a frozen dataclass's cost.)

    code      200..599
    enhanced  (class, subject, detail) of RFC 3463, or None
    text      all lines joined by spaces, without code and enhanced status
    """

    code: int
    enhanced: Enhanced | None
    text: str

    def __str__(self) -> str:
        """`550 5.1.1 No such user`."""
        status = "" if self.enhanced is None else " {}.{}.{}".format(*self.enhanced)
        return f"{self.code}{status} {self.text}".rstrip()


def _printable(raw: bytes) -> str:
    text = raw.strip().decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text).strip()
    return text if len(text) <= TEXT_MAX else text[:TEXT_MAX]


def read_ok(line: bytes) -> Reply:
    """The reply of one line `250 2.0.0 Ok`, with or without CR, known to begin with `250 `. Hot."""
    enhanced = _USUAL.get(line[4:10])
    if enhanced is not None:
        raw = line[10:]
    elif line[4:5] in _DIGITS:
        return _assemble(250, [line[4:]])  # an unusual status, or a text that begins with a digit
    else:
        raw = line[4:]
    text = raw.strip().decode("utf-8", "backslashreplace")
    if not text.isprintable() or len(text) > TEXT_MAX:
        text = _printable(raw)
    return _new(Reply, (250, enhanced, text))  # half as dear as Reply(...)


def _assemble(code: int, lines: Sequence[bytes]) -> Reply:
    """Join the lines of one reply; many servers repeat the enhanced status on each of them."""
    enhanced: Enhanced | None = None
    texts: list[bytes] = []
    for line in lines:
        rest = line.strip()
        match = _ENHANCED_RE.match(rest)
        if match is not None:
            status = (int(match[1]), int(match[2]), int(match[3]))
            if enhanced is None:
                enhanced = status
            if status == enhanced:
                rest = rest[match.end() :]
        if rest:
            texts.append(rest)
    return Reply(code, enhanced, _printable(b" ".join(texts)))


def read_text(text: str) -> Reply:
    """The reply a person pasted: `550 5.7.1 ...`, perhaps several lines. Raises ValueError if no line is one."""
    code = 0
    lines: list[bytes] = []
    for line in text.splitlines():
        match = _SPOKEN_RE.match(line)
        if match is not None:
            code = code or int(match[1])
            lines.append(match[2].encode("utf-8", "backslashreplace"))
        elif code:
            lines.append(line.encode("utf-8", "backslashreplace"))
    if not code:
        raise ValueError("no SMTP reply: it begins with a code from 200 to 599")
    return _assemble(code, lines)


def legible(text: str) -> str:
    """Text that was decoded with "surrogateescape", made such that it can be written anywhere."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class ReplyParser:
    """Replies out of a stream of bytes."""

    def __init__(self) -> None:
        self._rest = b""
        self._code = b""
        self._lines: list[bytes] = []
        self._bytes = 0

    @property
    def open(self) -> bool:
        """True in the middle of a reply of several lines."""
        return bool(self._lines)

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that are complete with `data`. Raises ProtocolError."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > LINE_MAX:
            raise ProtocolError("a reply line without an end")
        return [reply for line in lines if (reply := self.line(line)) is not None]

    def line(self, line: bytes) -> Reply | None:
        """Take one line, without its LF; the reply, or None if more lines follow. Raises ProtocolError."""
        if len(line) > LINE_MAX:
            raise ProtocolError("a reply line without an end")
        line = line.removesuffix(b"\r")
        match = _LINE_RE.fullmatch(line)
        if match is None:
            raise ProtocolError(f"not a reply: {_printable(line[:200])}")
        code, mark, text = match.groups()
        if self._lines and code != self._code:
            raise ProtocolError(f"a reply with two codes: {self._code.decode()} and {code.decode()}")
        self._lines.append(text or b"")
        self._bytes += len(line)
        if mark == b"-":
            self._code = code
            if self._bytes > REPLY_MAX:
                raise ProtocolError("a reply without an end")
            return None
        lines, self._lines, self._bytes = self._lines, [], 0
        return _assemble(int(code), lines)
