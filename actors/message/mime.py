"""The wire forms of text: header fields (RFC 5322, 2047) and bodies (RFC 2045).

May not: know templates, campaigns or recipients; read a clock or a file. Hot path: called for every message.

Invariants
- No header field holds a CR or LF that is not a fold made here, whatever text came in (header injection).
- A header line is at most 76 bytes if it holds an encoded word, else 78 where the text can be folded, never more
  than 998 (RFC 5322 2.1.1).
- A body line is at most 76 bytes in quoted-printable, at most `BODY_LINE_MAX` in 7bit.
- Decoding gives back exactly the text that went in.

RFC 2231 (parameters beyond ASCII) has no work here: charset and boundary, the only parameters we write, are ASCII.
"""

from __future__ import annotations

import re
import time
from binascii import b2a_base64, b2a_qp

__all__ = [
    "BODY_LINE_MAX",
    "ComposeError",
    "body",
    "date",
    "is_header_name",
    "is_plain",
    "mailbox",
    "part_head",
    "qp_piece",
    "quoted_printable",
    "refuse_breaks",
    "seven_bit",
    "unstructured",
]

BODY_LINE_MAX = 990  # bytes. SMTP carries 998; a dot doubled in transit and counted by a sloppy relay must fit too
_FOLD_AT = 78  # RFC 5322 2.1.1: what a line should stay within
_ENCODED_LINE_MAX = 76  # RFC 2047 2: what a line that holds an encoded word must stay within
_WORD_MAX = 75  # RFC 2047 2: one encoded word
_TOKEN_MAX = 900  # a run without spaces longer than this cannot be folded within 998: it is encoded instead
_PHRASE_MAX = 60  # a longer display name is encoded, because only encoded words can be folded anywhere

_SEVEN_BIT = bytes((9, 10, 13, *range(32, 127)))
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*").fullmatch
_HEADER_NAME = re.compile(r"[!-9;-~]{1,50}").fullmatch  # RFC 5322 3.6.8; behind more no encoded word has room
_TOKENS = re.compile(r" *[^ ]+").findall
_BREAK = re.compile(r"[\r\n]").search
_OVERFULL = re.compile(rb"^([^\r\n]{74,})(=20|=09)(?=\r\n)", re.MULTILINE).sub
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class ComposeError(Exception):
    """No message can be made for this recipient. The text says why, in one line."""


def date(date_s: int) -> bytes:
    """The value of a Date field (RFC 5322 3.3) for engine time in seconds, in UTC."""
    t = time.gmtime(date_s)
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04d} "
        f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} +0000"
    ).encode()


def is_header_name(name: str) -> bool:
    """Whether `name` may stand before the colon of a header field: 1 to 50 printable ASCII characters, no colon."""
    return _HEADER_NAME(name) is not None


def is_plain(value: str) -> bool:
    """Whether a header text needs no encoded words: printable ASCII that no reader takes for an encoded word."""
    return value.isascii() and value.isprintable() and "=?" not in value


def unstructured(name: str, value: str) -> bytes:
    """`Name: value` for a field of free text, folded and without the final CRLF. White space around it is dropped.

    Raises ComposeError when the text holds CR or LF: it would begin a header field of the sender's choosing.
    """
    plain = is_plain(value)
    if not plain:
        refuse_breaks(name, value)
    value = value.strip()
    if plain:
        if len(name) + 2 + len(value) <= _FOLD_AT:
            return f"{name}: {value}".encode()
        tokens = _TOKENS(value)
        if len(name) + max(map(len, tokens)) <= _TOKEN_MAX:
            return _folded(f"{name}:", tokens)
    return f"{name}: ".encode() + b"\r\n ".join(_encoded_words(value, _ENCODED_LINE_MAX - len(name) - 2))


def mailbox(name: str, display: str, address: bytes) -> bytes:
    """`Name: display <address>` (RFC 5322 3.4), folded, without the final CRLF. Only `address` when display is empty.

    Raises ComposeError when the display name holds CR or LF.
    """
    refuse_breaks(name, display)
    display = display.strip()
    head = f"{name}: ".encode()
    if not display:
        return head + address
    if is_plain(display) and len(display) <= _PHRASE_MAX:
        if not _ATOMS(display):
            display = '"' + display.replace("\\", "\\\\").replace('"', '\\"') + '"'
        phrase = display.encode()
    else:
        phrase = b"\r\n ".join(_encoded_words(display, _ENCODED_LINE_MAX - len(name) - 2))
    last = len(phrase) - (phrase.rfind(b"\n") + 1)
    if b"\n" not in phrase:
        last += len(head)
    gap = b" " if last + len(address) + 3 <= _ENCODED_LINE_MAX else b"\r\n "
    return b"%b%b%b<%b>" % (head, phrase, gap, address)


def refuse_breaks(name: str, value: str) -> None:
    """Raise ComposeError if a header value holds CR or LF."""
    if _BREAK(value):
        raise ComposeError(f"line break in {name}")


def body(text: str) -> tuple[bytes, bytes]:
    """A text with LF line ends as (content-transfer-encoding, bytes with CRLF line ends).

    7bit wherever it is lawful: it is smaller and cheaper than quoted-printable, people can read it, and lines between
    78 and `BODY_LINE_MAX` bytes are carried by every SMTP server (78 is advice for terminals, RFC 5322 2.1.1).
    """
    plain = seven_bit(text)
    if plain is not None:
        return b"7bit", plain
    return b"quoted-printable", quoted_printable(text)


def part_head(subtype: str, encoding: bytes) -> bytes:
    """The header block of a text part, empty line included."""
    return b"Content-Type: text/%b; charset=utf-8\r\nContent-Transfer-Encoding: %b\r\n\r\n" % (
        subtype.encode(),
        encoding,
    )


def seven_bit(text: str) -> bytes | None:
    """The text with CRLF line ends if 7bit may carry it (RFC 2045 2.7), else None. No control characters but tabs."""
    if not text.isascii():
        return None
    data = text.encode()
    if data.translate(None, _SEVEN_BIT):
        return None
    if len(data) > BODY_LINE_MAX and max(map(len, data.split(b"\n"))) > BODY_LINE_MAX:
        return None
    return data.replace(b"\n", b"\r\n")


def quoted_printable(text: str) -> bytes:
    """A text with LF line ends in quoted-printable (RFC 2045 6.7), CRLF line ends, lines of at most 76 bytes."""
    return _qp(text.encode())


def qp_piece(text: bytes) -> tuple[bytes, int]:
    """A piece of a body that begins at column 0 and goes on: (quoted-printable, column it ends in, at most 75).

    text   UTF-8, LF line ends. White space at its end is not encoded: something other than a line end must follow,
           if only a soft break.
    """
    # The x stands for what follows: it keeps white space from being the last of a line and one column free.
    coded = _qp(text + b"x")[:-1]
    return coded, len(coded) - (coded.rfind(b"\n") + 1)


def _qp(text: bytes) -> bytes:
    # b2a_qp ends its soft breaks as the first line of its input ends: a CRLF put first and cut off decides that.
    coded = b2a_qp(b"\r\n" + text.replace(b"\n", b"\r\n"))[2:]
    if b"=20\r\n" in coded or b"=09\r\n" in coded:
        # It encodes white space at the end of a line after having measured the line, which may then have 78 bytes.
        return _OVERFULL(rb"\1=\r\n\2", coded)
    return coded


def _folded(head: str, tokens: list[str]) -> bytes:
    """Words behind a field name, with a fold before each that would pass column 78. The first never moves."""
    lines = []
    line = f"{head} {tokens[0]}"
    for token in tokens[1:]:
        if len(line) + len(token) > _FOLD_AT:
            lines.append(line)
            line = token
        else:
            line += token
    lines.append(line)
    return "\r\n".join(lines).encode()


def _encoded_words(value: str, first: int) -> list[bytes]:
    """Encoded words (RFC 2047, UTF-8 in base64) that join to `value`; `first`: columns left for the first of them.

    Always base64: no character of it means anything to a phrase or to a comment, so that one form fits everywhere.
    """
    data = value.encode()
    words = []
    at, room = 0, (first - 12) // 4 * 3
    while at < len(data):
        end = at + room
        while end < len(data) and data[end] & 0xC0 == 0x80:  # a character may not be split between words (section 5)
            end -= 1
        words.append(b"=?utf-8?B?%b?=" % b2a_base64(data[at:end], newline=False))
        at, room = end, (_WORD_MAX - 12) // 4 * 3
    return words
