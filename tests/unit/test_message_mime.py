"""Header fields and bodies on the wire, read back with the standard library."""

from __future__ import annotations

import email
import email.policy
import quopri
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.message import mime
from actors.message.mime import BODY_LINE_MAX, ComposeError

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=400)
BODY = TEXT.map(lambda text: text.replace("\r\n", "\n").replace("\r", "\n"))


def decoded(field: bytes) -> str:
    """The value of a header field as the standard library reads it."""
    message = email.message_from_bytes(field + b"\r\n\r\n", policy=email.policy.default)
    return str(next(iter(message.values())))


def lines(field: bytes) -> list[bytes]:
    """The lines of a field; every fold is CRLF and white space, no line is white space alone."""
    found = field.split(b"\r\n")
    assert b"\r" not in b"".join(found)
    assert b"\n" not in b"".join(found)
    assert all(line.startswith(b" ") for line in found[1:])
    assert all(line.strip() for line in found)
    return found


@pytest.mark.parametrize(
    "value",
    [
        "Hello Anna",
        "1 < 2 & 3 > 2",
        "Grüße aus Köln",
        "Привет, " + "мир " * 40,
        "👨‍👩‍👧‍👦" * 30,
        "x" * 200,
        "x" * 2000,
        "two  spaces   stay " * 12,
        "=?utf-8?B?SGVsbG8=?= is shown as it is written",
        "a tab\tand a bell\x07",
        "",
    ],
)
def test_subject_reads_back_as_written_within_its_lines(value: str) -> None:
    """Any subject decodes to itself; lines stay within 76 with encoded words, else within 78 where folding can."""
    field = mime.unstructured("Subject", value)
    assert decoded(field) == value.strip()
    longest = max(map(len, lines(field)))
    limit = 76 if b"=?utf-8?B?" in field and not value.startswith("=?") else 78
    assert longest <= limit or max(map(len, value.split() or [""])) > 60
    assert longest <= 998


@given(TEXT.filter(lambda text: "\r" not in text and "\n" not in text))
def test_any_header_text_survives_encoding(value: str) -> None:
    """Whatever text a template makes, the standard library reads the same text back, in lawful lines."""
    field = mime.unstructured("Subject", value)
    expected = value.strip()
    if mime.is_plain(expected):
        assert decoded(field) == expected
    else:
        words = b"".join(line.strip().removeprefix(b"Subject: ") for line in lines(field))
        decoded_words = decode_header(words.decode().replace("?==?", "?= =?"))
        assert "".join(part.decode(charset or "ascii") for part, charset in decoded_words) == expected
        assert max(map(len, lines(field))) <= 76


@pytest.mark.parametrize("value", ["a\nBcc: x@example.net", "a\r\nb", "a\rb", "\n"])
def test_line_break_in_a_header_is_refused(value: str) -> None:
    """CR or LF in a value, at its edge too, is an error and never a header of somebody else's choosing."""
    with pytest.raises(ComposeError, match="line break in Subject"):
        mime.unstructured("Subject", value)
    with pytest.raises(ComposeError, match="line break in From"):
        mime.mailbox("From", value, b"a@example.com")


@pytest.mark.parametrize(
    "display",
    [
        "News",
        "Anna, Bob & Co.",
        'the "best" \\ shop',
        "Füchse",
        "日本語のニュース" * 8,
        "n" * 300,
        "a@b",
        "=?x?= y",
        "",
    ],
)
def test_display_name_reads_back_beside_its_address(display: str) -> None:
    """A display name of any characters and length decodes to itself, and the address stays one address."""
    field = mime.mailbox("From", display, b"news@example.com")
    assert max(map(len, lines(field))) <= 78
    message = email.message_from_bytes(field + b"\r\n\r\n", policy=email.policy.default)
    (address,) = message["From"].addresses
    assert address.addr_spec == "news@example.com"
    if b"?=\r\n" not in field:
        assert address.display_name == display
    else:  # the parser of Python 3.11 puts a space between encoded words of a phrase; its decoder does not
        assert str(make_header(decode_header(field.decode().partition(" ")[2]))) == f"{display} <news@example.com>"


def test_long_header_names_leave_room_for_encoded_words() -> None:
    """Behind the longest field name allowed, text beyond ASCII still fits and reads back."""
    field = mime.unstructured("X-" + "n" * 48, "Grüße " * 20)
    assert mime.is_header_name("X-" + "n" * 48)
    assert not mime.is_header_name("X-" + "n" * 49)
    assert max(map(len, lines(field))) <= 76
    assert decoded(field) == ("Grüße " * 20).strip()


@pytest.mark.parametrize("seconds", [0, 951_782_400, 1_795_516_093, 4_102_444_799])
def test_date_reads_back_as_the_same_second(seconds: int) -> None:
    """A Date field names the very second, in UTC."""
    assert parsedate_to_datetime(mime.date(seconds).decode()) == datetime.fromtimestamp(seconds, UTC)


@given(BODY)
def test_quoted_printable_gives_every_text_back(text: str) -> None:
    """Encoding and decoding is the identity, lines stay within 76 bytes and none ends in white space."""
    coded = mime.quoted_printable(text)
    assert quopri.decodestring(coded) == text.replace("\n", "\r\n").encode()
    for line in coded.split(b"\r\n"):
        assert len(line) <= 76
        assert not line.endswith((b" ", b"\t"))
        assert b"\n" not in line


@pytest.mark.parametrize(
    "text",
    [
        " ",
        "a \nb\t\n",
        "=" * 100,
        ".\n..\n.",
        "x" * 75,
        "x" * 76,
        "x" * 77,
        "ä" * 80,
        "",
        *("x" * n + " \ny\t\n" for n in range(70, 80)),
    ],
)
def test_quoted_printable_knows_the_hard_cases(text: str) -> None:
    """Trailing blanks, equals signs, dots, full lines and characters of several bytes come back."""
    coded = mime.quoted_printable(text)
    assert quopri.decodestring(coded) == text.replace("\n", "\r\n").encode()
    assert max(map(len, coded.split(b"\r\n"))) <= 76


@given(BODY, BODY)
def test_a_piece_can_be_followed_by_a_soft_break_or_by_its_column(text: str, after: str) -> None:
    """Pieces of quoted-printable joined by soft breaks decode to the pieces' texts, and the column is the true one."""
    coded, column = mime.qp_piece(text.encode())
    assert column == len(coded.rpartition(b"\n")[2]) <= 75
    whole = coded + b"=\r\n" + mime.quoted_printable(after + "\n")
    assert quopri.decodestring(whole) == (text + after + "\n").replace("\n", "\r\n").encode()
    assert max(map(len, whole.split(b"\r\n"))) <= 76


def test_body_is_7bit_as_long_as_that_is_lawful() -> None:
    """ASCII in lines up to the limit goes as it is; not one byte more, a control character or an umlaut."""
    assert mime.body("a\n" + "x" * BODY_LINE_MAX + "\n") == (b"7bit", b"a\r\n" + b"x" * BODY_LINE_MAX + b"\r\n")
    for text in ("x" * (BODY_LINE_MAX + 1), "\0", "\x1b[0m", "ä", "\x7f"):
        assert mime.body(text + "\n")[0] == b"quoted-printable"
