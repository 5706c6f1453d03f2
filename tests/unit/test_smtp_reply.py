"""Replies out of bytes: whole, cut anywhere, and not replies at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.smtp.reply import LINE_MAX, REPLY_MAX, TEXT_MAX, ProtocolError, Reply, ReplyParser, read_ok, read_text

STREAM = (
    b"220 mx.example.com ESMTP\r\n"
    b"250-mx.example.com\r\n250-PIPELINING\r\n250 \r\n"
    b"250 2.1.0 Ok\n"
    b"550-5.1.1 The account does not exist.\r\n550-5.1.1 Check the spelling\r\n550 5.1.1 e2si123\r\n"
    b"354\r\n"
    b"452 4.2.2\r\n"
)
REPLIES = [
    Reply(220, None, "mx.example.com ESMTP"),
    Reply(250, None, "mx.example.com PIPELINING"),
    Reply(250, (2, 1, 0), "Ok"),
    Reply(550, (5, 1, 1), "The account does not exist. Check the spelling e2si123"),
    Reply(354, None, ""),
    Reply(452, (4, 2, 2), ""),
]


@pytest.mark.parametrize("cut", [len(STREAM), 1, 2, 3, 5, 17])
def test_replies_are_the_same_however_they_are_cut(cut: int) -> None:
    """Whole or in pieces: the same replies, enhanced statuses taken out of the text once."""
    parser = ReplyParser()
    pieces = [STREAM[at : at + cut] for at in range(0, len(STREAM), cut)]
    assert [reply for piece in pieces for reply in parser.feed(piece)] == REPLIES
    assert not parser.open


@pytest.mark.parametrize(
    "garbage",
    [b"", b"hello", b"25", b"2500 x", b"250x", b"150 no such class", b"650 x", b"250-a\r\n251 b", b"\x15\x03\x01\x00"],
)
def test_what_is_no_reply_is_an_error(garbage: bytes) -> None:
    """A line without a code, with a strange one, or with another than the line before."""
    with pytest.raises(ProtocolError):
        ReplyParser().feed(garbage + b"\r\n")


def test_nothing_is_held_without_a_bound() -> None:
    """A line and a reply each have a cap."""
    with pytest.raises(ProtocolError):
        ReplyParser().feed(b"2" * (LINE_MAX + 1))
    parser = ReplyParser()
    with pytest.raises(ProtocolError):
        parser.feed((b"250-" + b"x" * 1000 + b"\r\n") * (REPLY_MAX // 1000 + 1))


def test_a_text_can_be_shown_as_it_is() -> None:
    """Control characters become spaces, bytes that are not UTF-8 are written out, and the length is bounded."""
    (reply,) = ReplyParser().feed(b"550 5.1.1 a\x1b[31mb\x00c \xff " + b"x" * 5000 + b"\r\n")
    assert reply.text.startswith("a [31mb c \\xff xxx")
    assert reply.text.isprintable()
    assert len(reply.text) == TEXT_MAX


@given(
    st.sampled_from(["", "2.0.0 ", "2.1.5 ", "2.6.7 ", "5.7.26 ", "2.0.0", "x", "2 ", "42 bytes "]),
    st.text("Oköé <>.@12\x1b\xa0", max_size=20),
)
def test_the_quick_reader_agrees_with_the_careful_one(status: str, text: str) -> None:
    """One line that says 250, read either way, is the same reply."""
    line = f"250 {status}{text}".encode()
    assert [read_ok(line + b"\r")] == ReplyParser().feed(line + b"\r\n")
    assert [read_ok(line)] == ReplyParser().feed(line + b"\n")


def test_a_pasted_reply_is_understood() -> None:
    """What a person copies out of a log, several lines included; what is none is refused."""
    assert str(read_text(" 550-5.7.1 no\n550 5.7.1 way")) == "550 5.7.1 no way"
    assert read_text("450") == Reply(450, None, "")
    with pytest.raises(ValueError, match="200 to 599"):
        read_text("nothing")
