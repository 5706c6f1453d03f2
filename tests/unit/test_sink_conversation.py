"""The rehearsal server's conversation without a socket: order, pipelining, cuts at every byte, odd clients."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.sink.conversation import SIZE_MAX, Conversation, Manners
from actors.sink.policy import Policy
from actors.sink.record import Record

GREETING = b"220 sink.example.com ESMTP sink\r\n"
MAIL, RCPT, GO = b"250 2.1.0 Ok\r\n", b"250 2.1.5 Ok\r\n", b"354 End data with <CR><LF>.<CR><LF>\r\n"


class Wire:
    """A transport that keeps what was written, one item a write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after the end"
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    @property
    def said(self) -> bytes:
        return b"".join(self.writes)


class Kept(Record):
    """A record that also keeps the bodies it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[bytes, bytes, bytes]] = []

    def accepted(self, mail_from: bytes, recipient: bytes, body: bytes) -> None:
        super().accepted(mail_from, recipient, body)
        self.taken.append((mail_from, recipient, body))


def conversation(policy: Policy | None = None, manners: Manners | None = None) -> tuple[Conversation, Wire, Kept]:
    """A conversation that has greeted; the greeting is out of the way."""
    wire, record = Wire(), Kept()
    talk = Conversation(manners or Manners(), policy or Policy(), record, set())
    talk.connection_made(cast("asyncio.Transport", wire))
    assert wire.writes.pop() == GREETING
    return talk, wire, record


def group(rcpt: bytes = b"anna@example.org", mail: bytes = b"news@example.com") -> bytes:
    """MAIL RCPT DATA."""
    return b"MAIL FROM:<%b>\r\nRCPT TO:<%b>\r\nDATA\r\n" % (mail, rcpt)


def test_a_group_is_answered_in_one_write_and_in_order() -> None:
    """`body . MAIL RCPT DATA` gets its four replies at once."""
    talk, wire, record = conversation()
    talk.data_received(group())
    talk.data_received(b"Subject: x\r\n\r\none\r\n.\r\n" + group(b"bert@example.org"))
    talk.data_received(b"two\r\n.\r\nQUIT\r\n")
    assert wire.writes == [
        MAIL + RCPT + GO,
        b"250 2.0.0 Ok: queued as 1\r\n" + MAIL + RCPT + GO,
        b"250 2.0.0 Ok: queued as 2\r\n221 2.0.0 Bye\r\n",
    ]
    assert wire.closed
    assert [(rcpt, body) for _, rcpt, body in record.taken] == [
        (b"anna@example.org", b"Subject: x\r\n\r\none\r\n"),
        (b"bert@example.org", b"two\r\n"),
    ]


TALK = (
    b"EHLO me\r\n"
    + group()
    + b".\r\n"  # an empty message
    + group(b"defer@example.org")
    + group(b"bounce@example.org")
    + b"RSET\r\n"
    + group(b"body-554@example.org")
    + b"..\r\n.x\r\n\r\n.\r\n"
    + b"mail from: <a@example.com> SIZE=10\r\nrcpt to: <b@example.com> NOTIFY=NEVER\r\n"
    + b"RCPT TO:<c@example.com>\r\ndata\r\n"
    + b"x\r\n.y\r\n\r\n.\r\n"
    + b"NOOP\r\nVRFY x\r\nBDAT 1 LAST\r\nRCPT TO:<x@example.com>\r\nDATA\r\nMAIL FROM:nobody\r\n"
    + b"MAIL FROM:<>\r\nMAIL FROM:<>\r\nRCPT TO:<>\r\nDATA\r\nHELO me\r\nQUIT\r\nNOOP\r\n"
)


def test_every_command_has_its_reply() -> None:
    """A long conversation with everything in it, whole."""
    talk, wire, record = conversation()
    talk.data_received(TALK)
    codes = [line[:4] for line in wire.said.split(b"\r\n")[:-1]]
    assert codes == [
        *[b"250-"] * 5, b"250 ",  # EHLO
        b"250 ", b"250 ", b"354 ", b"250 ",  # the empty message
        b"250 ", b"450 ", b"554 ",  # deferred: DATA has no recipient
        b"503 ", b"550 ", b"554 ",  # its transaction is still open: MAIL is out of order, RCPT refused
        b"250 ", b"250 ", b"250 ", b"354 ", b"554 ",  # RSET, and a body refused
        b"250 ", b"250 ", b"250 ", b"354 ", b"250 ",  # two recipients
        b"250 ", b"252 ", b"502 ", b"503 ", b"503 ", b"501 ",
        b"250 ", b"503 ", b"501 ", b"554 ", b"250 ", b"221 ",
    ]  # fmt: skip
    assert wire.closed
    assert [(rcpt, body) for _, rcpt, body in record.taken] == [
        (b"anna@example.org", b""),
        (b"b@example.com", b"x\r\n.y\r\n\r\n"),
        (b"c@example.com", b"x\r\n.y\r\n\r\n"),
    ]
    assert (record.counts["deferred"], record.counts["bounced"]) == (1, 2)


@given(st.lists(st.integers(1, 80), max_size=40))
def test_the_same_is_said_however_the_bytes_arrive(cuts: list[int]) -> None:
    """Cut anywhere, the conversation is the same, and the same messages are taken."""
    whole, expected, kept = conversation()
    whole.data_received(TALK)
    talk, wire, record = conversation()
    rest = TALK
    for cut in cuts:
        talk.data_received(rest[:cut])
        rest = rest[cut:]
    talk.data_received(rest)
    assert (wire.said, record.taken) == (expected.said, kept.taken)


def test_one_byte_at_a_time_is_the_same_as_the_whole() -> None:
    """The finest cut there is."""
    whole, expected, kept = conversation()
    whole.data_received(TALK)
    talk, wire, record = conversation()
    for at in range(len(TALK)):
        talk.data_received(TALK[at : at + 1])
    assert (wire.said, record.taken) == (expected.said, kept.taken)


@pytest.mark.parametrize(
    ("rcpt", "said", "counter"),
    [
        (b"drop-before@example.org", MAIL + RCPT, "dropped_before"),
        (b"421@example.org", MAIL + b"421 4.3.2 Closing connection\r\n", "closed_421"),
        (b"rcpt-421@example.org", MAIL + b"421 4.0.0 As the recipient's address asks\r\n", "deferred"),
    ],
)
def test_magic_addresses_end_the_connection_where_they_say(rcpt: bytes, said: bytes, counter: str) -> None:
    """What came before is answered, nothing after it is, and nothing is accepted."""
    talk, wire, record = conversation()
    talk.data_received(group(rcpt) + b"body\r\n.\r\n" + group())
    talk.data_received(group())
    assert (wire.said, wire.closed) == (said, True)
    assert record.counts[counter] == 1
    assert record.taken == []


def test_drop_after_reads_the_body_and_says_nothing() -> None:
    """The worst a relay can do: the body is gone, the reply never comes."""
    talk, wire, record = conversation()
    talk.data_received(group(b"drop-after@example.org"))
    talk.data_received(b"body\r\n.\r\n" + group())
    assert (wire.said, wire.closed) == (MAIL + RCPT + GO, True)
    assert (record.counts["dropped_after"], record.counts["messages"]) == (1, 0)


def test_pipelining_can_be_hidden() -> None:
    """Without PIPELINING in its EHLO the sink is otherwise the same."""
    talk, wire, _ = conversation(manners=Manners(pipelining=False))
    talk.data_received(b"EHLO me\r\n")
    keywords = [line[4:].split(b" ")[0] for line in wire.said.split(b"\r\n")[1:-1]]
    assert keywords == [b"SIZE", b"8BITMIME", b"SMTPUTF8", b"ENHANCEDSTATUSCODES"]


def test_a_message_beyond_the_limit_is_refused_and_not_held() -> None:
    """Announced too big: refused at MAIL. Too big without a word: read, dropped, refused at its end."""
    talk, wire, record = conversation()
    talk.data_received(b"MAIL FROM:<a@example.com> SIZE=%d\r\n" % (SIZE_MAX + 1))
    assert wire.writes.pop().startswith(b"552 5.3.4")
    talk.data_received(group())
    wire.writes.clear()
    piece = b"x" * 1023 + b"\r\n"
    piece *= 4096
    for _ in range(SIZE_MAX // len(piece) + 1):
        talk.data_received(piece)
    assert sum(map(len, talk._parts)) == 0
    talk.data_received(b".\r\nNOOP\r\n")
    assert wire.said.startswith(b"552 5.3.4")
    assert wire.said.endswith(b"250 2.0.0 Ok\r\n")
    assert (record.counts["refused"], record.counts["messages"]) == (2, 0)


def test_a_line_without_an_end_ends_the_connection() -> None:
    """A command longer than any command is not waited for."""
    talk, wire, _ = conversation()
    for _ in range(6):
        talk.data_received(b"N" * 1000)
    assert wire.said == b"500 5.5.2 Line too long\r\n"
    assert wire.closed


def test_duplicates_are_messages_whose_recipient_had_that_message_id_before() -> None:
    """Same Message-ID and recipient twice is a duplicate, however the header is spelt; another recipient's is not."""
    _, _, record = conversation()
    for rcpt, name in ((b"a", b"Message-ID"), (b"b", b"Message-ID"), (b"a", b"message-id"), (b"a", b"Message-Id")):
        record.accepted(b"", rcpt, b"Subject: x\r\n%b: <1@example.com>\r\n\r\nMessage-ID: <2@example.com>\r\n" % name)
    record.accepted(b"", b"a", b"Subject: x\r\n\r\nno header\r\n")
    record.accepted(b"", b"a", b"Subject: x\r\n\r\nno header\r\n")
    assert (record.counts["messages"], record.counts["duplicates"]) == (6, 2)


def test_latency_delays_each_group_and_keeps_the_order() -> None:
    """Replies come late, one group after the other, and the end comes after them."""

    async def talk() -> tuple[list[bytes], float]:
        loop = asyncio.get_running_loop()
        wire, record = Wire(), Kept()
        slow = Conversation(Manners(latency_s=0.02), Policy(), record, set())
        began = loop.time()
        slow.connection_made(cast("asyncio.Transport", wire))
        slow.data_received(b"NOOP\r\n")
        slow.data_received(b"VRFY x\r\nQUIT\r\n")
        assert wire.writes == []
        async with asyncio.timeout(10):
            while not wire.closed:
                await asyncio.sleep(0.001)
        return wire.writes, loop.time() - began

    writes, took_s = asyncio.run(talk())
    assert writes == [GREETING, b"250 2.0.0 Ok\r\n", b"252 2.0.0 Send some mail and see\r\n221 2.0.0 Bye\r\n"]
    assert took_s >= 0.019
