"""The rehearsal server's conversation without a socket: order, pipelining, cuts at every byte, odd clients."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.sink.auth import Credentials
from actors.sink.conversation import Conversation
from actors.sink.held import Delays
from actors.sink.manners import SIZE_MAX, Manners
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

    abort = write_eof = close

    def can_write_eof(self) -> bool:
        return True

    def get_extra_info(self, name: str) -> None:
        """Not encrypted."""

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

    def accepted(self, mail_from: bytes, recipient: bytes, body: bytes, *, stuffed: bool) -> None:
        super().accepted(mail_from, recipient, body, stuffed=stuffed)
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


def window(rcpt: bytes, body: bytes) -> bytes:
    """RSET MAIL RCPT and a body as one chunk."""
    return b"RSET\r\n" + group(rcpt).removesuffix(b"DATA\r\n") + b"BDAT %d LAST\r\n%b" % (len(body), body)


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
    + b"NOOP\r\nVRFY x\r\nBDAT 1 LAST\r\nXRCPT TO:<x@example.com>\r\nDATA\r\nMAIL FROM:nobody\r\n"
    + window(b"d@example.com", b"x\r\n.\r\n..\r\n")
    + window(b"bounce@example.org", b"QUIT\r\n")
    + window(b"body-554@example.org", b"QUIT\r\n")
    + window(b"data-451@example.org", b"QUIT\r\n")
    + window(b"e@example.com", b"")
    + b"MAIL FROM:<f@example.com>\r\nRCPT TO:<g@example.com>\r\nbdat 3\r\none"
    + b"RCPT TO:<late@example.com>\r\nDATA\r\nMAIL FROM:<late@example.com>\r\nBDAT 0\r\nBDAT 4  last\r\n\r\n.\r"
    + b"BDAT 6 FIRST\r\nQUIT\r\nFOO\r\nSTARTTLS\r\nAUTH PLAIN\r\n"
    + b"MAIL FROM:<>\r\nMAIL FROM:<>\r\nRCPT TO:<>\r\nDATA\r\nHELO me\r\nQUIT\r\nNOOP\r\n"
)


def test_every_command_has_its_reply() -> None:
    """A long conversation with everything in it, whole."""
    talk, wire, record = conversation()
    talk.data_received(TALK)
    codes = [line[:4] for line in wire.said.split(b"\r\n")[:-1]]
    assert codes == [
        *[b"250-"] * 6, b"250 ",  # EHLO
        b"250 ", b"250 ", b"354 ", b"250 ",  # the empty message
        b"250 ", b"450 ", b"554 ",  # deferred: DATA has no recipient
        b"503 ", b"550 ", b"554 ",  # its transaction is still open: MAIL is out of order, RCPT refused
        b"250 ", b"250 ", b"250 ", b"354 ", b"554 ",  # RSET, and a body refused
        b"250 ", b"250 ", b"250 ", b"354 ", b"250 ",  # two recipients
        b"250 ", b"252 ", b"503 ", b"503 ", b"503 ", b"501 ",  # BDAT out of order takes its byte with it
        b"250 ", b"250 ", b"250 ", b"250 ",  # a window: taken
        b"250 ", b"250 ", b"550 ", b"554 ",  # recipient refused
        b"250 ", b"250 ", b"250 ", b"554 ",  # body refused
        b"250 ", b"250 ", b"250 ", b"451 ",  # refused as DATA would be
        b"250 ", b"250 ", b"250 ", b"250 ",  # an empty message
        b"250 ", b"250 ", b"250 ", b"503 ", b"503 ", b"503 ", b"250 ", b"250 ",  # in chunks, nothing in between
        b"501 ", b"502 ", b"502 ", b"502 ",  # a chunk of a kind that is none, and what is not offered
        b"250 ", b"503 ", b"501 ", b"554 ", b"250 ", b"221 ",
    ]  # fmt: skip
    assert wire.closed
    assert [(rcpt, body) for _, rcpt, body in record.taken] == [
        (b"anna@example.org", b""),
        (b"b@example.com", b"x\r\n.y\r\n\r\n"),
        (b"c@example.com", b"x\r\n.y\r\n\r\n"),
        (b"d@example.com", b"x\r\n.\r\n..\r\n"),
        (b"e@example.com", b""),
        (b"g@example.com", b"one\r\n.\r"),
    ]
    assert (record.counts["deferred"], record.counts["bounced"]) == (2, 4)
    assert (record.totals()["by_data"], record.counts["by_bdat"]) == (3, 3)


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
        (b"throttle@example.org", MAIL + b"421 4.7.0 Too many messages, slow down\r\n", "throttled"),
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


@pytest.mark.parametrize(
    ("rcpt", "said", "counter", "closed"),
    [
        (b"drop-before@example.org", b"", "dropped_before", True),
        (b"drop-during@example.org", b"", "dropped_during", True),
        (b"drop-after@example.org", b"", "dropped_after", True),
        (b"data-421@example.org", b"421 4.0.0 As the recipient's address asks\r\n", "deferred", True),
        (b"hang-after@example.org", b"", "hung", False),
    ],
)
def test_faults_show_in_a_window_as_they_do_after_data(rcpt: bytes, said: bytes, counter: str, closed: bool) -> None:
    """The message before is accepted, the one behind is not read, and the counts say what happened."""
    talk, wire, record = conversation()
    behind = window(b"behind@example.org", b"x\r\n")
    talk.data_received(window(b"first@example.org", b"x\r\n") + window(rcpt, b"x\r\n") + behind)
    talk.data_received(behind)
    before = b"250 2.0.0 Ok\r\n" + MAIL + RCPT + b"250 2.0.0 Ok: queued as 1\r\n"
    assert (wire.said, wire.closed) == (before + b"250 2.0.0 Ok\r\n" + MAIL + RCPT + said, closed)
    assert record.counts[counter] == 1
    assert [rcpt for _, rcpt, _ in record.taken] == [b"first@example.org"]


def test_a_connection_may_end_in_the_middle_of_a_body() -> None:
    """drop-during: after the 354, with the first bytes of the body."""
    talk, wire, record = conversation()
    talk.data_received(group(b"drop-during@example.org"))
    assert not wire.closed
    talk.data_received(b"Subject")
    assert (wire.said, wire.closed, record.counts["dropped_during"]) == (MAIL + RCPT + GO, True, 1)


def test_hang_keeps_the_connection_and_says_nothing_more() -> None:
    """No answer to RCPT nor to what follows; the client has to give up."""
    talk, wire, record = conversation()
    talk.data_received(group(b"hang@example.org"))
    talk.data_received(b"NOOP\r\nQUIT\r\n")
    assert (wire.said, wire.closed, record.counts["hung"]) == (MAIL, False, 1)


def test_it_closes_silently_after_so_many_messages() -> None:
    """The replies of the messages before are all there; the rest of the window is not read."""
    talk, wire, record = conversation(manners=Manners(close_after=2))
    talk.data_received(b"".join(window(b"user%d@example.org" % n, b"x\r\n") for n in range(4)))
    assert wire.closed
    assert wire.said.endswith(b"250 2.0.0 Ok: queued as 2\r\n")
    assert record.counts["messages"] == 2


def test_connections_beyond_the_limit_are_turned_away() -> None:
    """421 instead of a greeting, while there is one; afterwards the next is welcome."""
    manners, policy, record, wires = Manners(sessions_max=1), Policy(), Kept(), [Wire(), Wire(), Wire()]
    talks = [Conversation(manners, policy, record, set()) for _ in wires]
    talks[0].connection_made(cast("asyncio.Transport", wires[0]))
    talks[1].connection_made(cast("asyncio.Transport", wires[1]))
    assert (wires[1].said[:4], wires[1].closed, record.counts["turned_away"]) == (b"421 ", True, 1)
    for talk in talks[:2]:
        talk.connection_lost(None)
    talks[2].connection_made(cast("asyncio.Transport", wires[2]))
    assert (wires[2].said, record.sessions_open) == (GREETING, 1)


PLAIN = b64encode(b"\0me\0secret")


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        ([b"AUTH PLAIN " + PLAIN], [b"235"]),
        ([b"AUTH PLAIN", PLAIN], [b"334", b"235"]),
        ([b"auth login", b64encode(b"me"), b64encode(b"secret")], [b"334", b"334", b"235"]),
        ([b"AUTH LOGIN " + b64encode(b"me"), b64encode(b"secret")], [b"334", b"235"]),
        ([b"AUTH PLAIN " + b64encode(b"\0me\0wrong")], [b"535"]),
        ([b"AUTH PLAIN " + b64encode(b"me")], [b"535"]),
        ([b"AUTH LOGIN", b"*"], [b"334", b"501"]),
        ([b"AUTH PLAIN !"], [b"501"]),
        ([b"AUTH CRAM-MD5"], [b"504"]),
        ([b"AUTH"], [b"504"]),
    ],
)
def test_only_the_user_with_the_password_may_send(lines: list[bytes], codes: list[bytes]) -> None:
    """PLAIN and LOGIN, in one line or in several; everybody else is told to authenticate, windows included."""
    talk, wire, record = conversation(manners=Manners(credentials=Credentials("me", "secret")))
    talk.data_received(window(b"a@example.org", b"QUIT\r\n") + b"".join(line + b"\r\n" for line in lines))
    assert [said[:3] for said in wire.said.split(b"\r\n")[:-1]] == [b"250", b"530", b"503", b"503", *codes]
    talk.data_received(window(b"a@example.org", b"x\r\n"))
    right = codes[-1] == b"235"
    assert len(record.taken) == right
    assert (record.counts["logins"], record.counts["logins_refused"]) == (right, not right)


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
    assert keywords == [b"SIZE", b"ENHANCEDSTATUSCODES", b"CHUNKING", b"8BITMIME", b"SMTPUTF8"]


def test_what_is_not_announced_is_not_taken() -> None:
    """Without CHUNKING, 8BITMIME and SMTPUTF8 their words are refused; a window loses its body to the commands."""
    bare = Manners(chunking=False, eight_bit=False, smtputf8=False, size_max=1000)
    talk, wire, record = conversation(manners=bare)
    talk.data_received(b"EHLO me\r\n")
    assert wire.writes.pop().split(b"\r\n")[1:-1] == [b"250-SIZE 1000", b"250-ENHANCEDSTATUSCODES", b"250 PIPELINING"]
    for parameters in (b"BODY=8BITMIME", b"SMTPUTF8", b"FOO=1", b"SIZE=1001"):
        talk.data_received(b"MAIL FROM:<a@example.com> %b\r\n" % parameters)
    assert [said[:3] for said in wire.writes] == [b"555", b"555", b"555", b"552"]
    wire.writes.clear()
    talk.data_received(window(b"a@example.com", b"NOOP\r\n"))
    assert wire.said == b"250 2.0.0 Ok\r\n" + MAIL + RCPT + b"502 5.5.1 Command not implemented\r\n250 2.0.0 Ok\r\n"
    assert record.taken == []


def test_a_window_is_answered_in_one_write() -> None:
    """All messages of a read together, four replies each; one that is cut gets what belongs to its beginning."""
    talk, wire, record = conversation()
    messages = [window(b"user%d@example.org" % n, b"Subject: %d\r\n\r\n.\r\n" % n) for n in range(3)]
    talk.data_received(b"".join(messages) + messages[0][:-4])
    accepted = b"250 2.0.0 Ok\r\n" + MAIL + RCPT + b"250 2.0.0 Ok: queued as %d\r\n"
    assert wire.writes == [b"".join(accepted % n for n in (1, 2, 3)) + b"250 2.0.0 Ok\r\n" + MAIL + RCPT]
    talk.data_received(messages[0][-4:])
    assert wire.writes[1:] == [b"250 2.0.0 Ok: queued as 4\r\n"]
    assert [body for _, _, body in record.taken][-1] == b"Subject: 0\r\n\r\n.\r\n"


@pytest.mark.parametrize("line", [b"BDAT", b"BDAT x LAST", b"BDAT -1 LAST", b"BDAT LAST"])
def test_a_chunk_without_a_size_ends_the_connection(line: bytes) -> None:
    """Where its body ends nobody knows, so no byte of it is taken for a command."""
    talk, wire, _ = conversation()
    talk.data_received(line + b"\r\nNOOP\r\n")
    assert (wire.said, wire.closed) == (b"501 5.5.4 Syntax: BDAT count [LAST]\r\n", True)


def test_chunks_beyond_the_limit_are_read_refused_and_not_held() -> None:
    """One chunk too big, and two that are too big together; what follows them is understood."""
    talk, wire, record = conversation(manners=Manners(size_max=1000))
    talk.data_received(window(b"a@example.com", b"N" * 1001) + b"NOOP\r\n")
    talk.data_received(window(b"a@example.com", b"").replace(b"0 LAST", b"600") + b"N" * 600)
    talk.data_received(b"BDAT 600\r\n" + b"N" * 600 + b"BDAT 6 LAST\r\nNOOP\r\nNOOP\r\n")
    codes = [said[:3] for said in wire.said.split(b"\r\n")[:-1]]
    assert codes == [b"250"] * 3 + [b"552"] + [b"250"] * 5 + [b"552", b"503", b"250"]
    assert (record.counts["refused"], record.taken) == (2, [])


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
    assert talk._dialogue._body.held() == b""
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
        body = b"Subject: x\r\n%b: <1@example.com>\r\n\r\nMessage-ID: <2@example.com>\r\n" % name
        record.accepted(b"", rcpt, body, stuffed=True)
    record.accepted(b"", b"a", b"Subject: x\r\n\r\nno header\r\n", stuffed=False)
    record.accepted(b"", b"a", b"Subject: x\r\n\r\nno header\r\n", stuffed=False)
    assert (record.counts["messages"], record.counts["duplicates"]) == (6, 2)


def test_duplicates_are_found_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the last so many messages at least; what lies further back is forgotten."""
    monkeypatch.setattr("actors.sink.record.REMEMBERED", 100)
    record = Record()
    bodies = [b"Message-ID: <%d@example.com>\r\n\r\n" % n for n in range(1000)]
    for body in bodies:
        record.accepted(b"", b"a", body, stuffed=False)
    for body in (*bodies[-100:], *bodies[:100]):
        record.accepted(b"", b"a", body, stuffed=False)
    assert record.counts["duplicates"] == 100
    assert len(record._seen) + len(record._seen_before) <= 200


def test_sizes_are_told_to_sixteen_bytes() -> None:
    """Least, median and greatest of what was accepted; nothing was: zeros."""
    record = Record()
    assert record.totals()["size_median"] == 0
    for size in (10, 1000, 1000, 1010, 50_000):
        record.accepted(b"", b"a", b"x" * size, stuffed=False)
    totals = record.totals()
    assert (totals["size_least"], totals["size_median"], totals["size_greatest"]) == (0, 992, 50_000)


def test_latency_delays_each_group_and_keeps_the_order() -> None:
    """Replies come late and in order, and the end comes after them."""

    async def talk() -> tuple[list[bytes], float]:
        loop = asyncio.get_running_loop()
        wire, record = Wire(), Kept()
        slow = Conversation(Manners(delays=Delays(latency_s=0.02)), Policy(), record, set())
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
    assert b"".join(writes) == GREETING + b"250 2.0.0 Ok\r\n252 2.0.0 Send some mail and see\r\n221 2.0.0 Bye\r\n"
    assert took_s >= 0.019
