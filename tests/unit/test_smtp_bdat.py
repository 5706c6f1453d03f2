"""Windows of BDAT: what is written, how much may be in flight, and that the books agree with a relay that may die."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.smtp.events import Concluded, Event, Mode, Stage
from actors.smtp.outcome import CONCLUDES, decide
from actors.smtp.reply import Reply
from actors.smtp.transaction import WINDOW_BYTES, Exchange, Transactions
from shm.files.ledger import States
from tests.fixtures.scripted_relay import CLOSE, Message, ScriptedRelay, drive

MAIL, RCPT = b"news@example.com", b"anna@example.org"
WELL = b"250 2.0.0 Ok\r\n250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n250 2.0.0 Ok: queued\r\n"


def window_of(size: int, *bodies: bytes) -> Exchange:
    """A client with these messages in flight, numbered from 1."""
    client = Transactions(Mode.BDAT)
    client.window = size
    for number, body in enumerate(bodies, 1):
        assert client.room()
        client.submit(number, MAIL, RCPT, body)
    return client


def test_a_message_is_one_group_with_its_body_as_it_is() -> None:
    """RSET first, then the envelope, then the length and the body, no dot doubled (RFC 3030 2)."""
    client = Transactions(Mode.BDAT)
    assert client.submit(1, MAIL, RCPT, b".\r\n..\r\n", b"SIZE=7") == (
        b"RSET\r\nMAIL FROM:<news@example.com> SIZE=7\r\nRCPT TO:<anna@example.org>\r\nBDAT 7 LAST\r\n.\r\n..\r\n"
    )
    with pytest.raises(ValueError, match="control character"):
        Transactions(Mode.BDAT).submit(1, MAIL, b"a\r\nDATA", b"x\r\n")
    with pytest.raises(ValueError, match="CRLF"):
        Transactions(Mode.BDAT).submit(1, MAIL, RCPT, b"no end")


def test_a_window_needs_no_reply_before_it_is_full() -> None:
    """As many messages as `window` says, one more for each that is answered; it may change at any time."""
    client = Transactions(Mode.BDAT)
    assert client.room() == 1
    client.window = 3
    for number in (1, 2, 3):
        assert client.room() == 4 - number
        client.submit(number, MAIL, RCPT, b"x\r\n")
    assert client.room() == 0
    assert [c.number for c in client.receive(WELL)[0]] == [1]
    assert client.room() == 1
    client.window = 1
    assert client.room() == 0
    assert [c.number for c in client.receive(WELL * 2)[0]] == [2, 3]
    assert client.idle
    assert client.room() == 1


def test_a_window_is_bounded_in_bytes_too() -> None:
    """No more bodies than WINDOW_BYTES in flight, but one at least, however large."""
    third = b"x" * (WINDOW_BYTES // 3 - 2) + b"\r\n"
    client = window_of(100, third)
    assert client.room() == 2
    client.submit(2, MAIL, RCPT, third)
    client.submit(3, MAIL, RCPT, third)
    assert client.room() == 0
    client.receive(WELL * 3)
    assert client.room() == 3
    client.submit(4, MAIL, RCPT, b"x" * WINDOW_BYTES + b"\r\n")
    assert client.room() == 0
    client.receive(WELL)
    assert client.room() == 1


@given(st.integers(1, 6), st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_a_window_of_plain_successes_is_read_the_same_however_it_is_cut(count: int, cuts: list[int]) -> None:
    """Reads end in the middle of replies, and begin with the last reply to a message: nothing gets lost or shifted."""
    client = window_of(count, *[b"x\r\n"] * count)
    stream = b"".join(WELL.replace(b"queued", b"queued as %d" % n) for n in range(1, count + 1))
    concluded: list[Concluded] = []
    while stream:
        size = cuts[len(stream) % len(cuts)]
        concluded += client.receive(stream[:size])[0]
        stream = stream[size:]
    assert concluded == [
        Concluded(n, Stage.BODY, Reply(250, (2, 0, 0), f"Ok: queued as {n}"), Event.OK) for n in range(1, count + 1)
    ]
    assert (client.stage, client.room()) == (Stage.IDLE, count)


def test_deadlines_are_told_what_is_awaited() -> None:
    """`stage` names the oldest reply owed."""
    client = window_of(2, b"x\r\n", b"x\r\n")
    seen = [client.stage]
    for line in (WELL * 2).splitlines(keepends=True):
        client.receive(line)
        seen.append(client.stage)
    one = [Stage.RSET, Stage.MAIL, Stage.RCPT, Stage.BODY]
    assert seen == [*one, *one, Stage.IDLE]


def test_more_replies_than_are_owed_conclude_what_is_owed_and_end_it() -> None:
    """The count is exact: the fifth reply to one message belongs to nothing."""
    client = window_of(1, b"x\r\n")
    concluded, _ = client.receive(WELL + b"250 2.0.0 Ok\r\n")
    assert [(c.number, c.event) for c in concluded] == [(1, Event.OK)]
    assert client.fault == "a reply nobody asked for: 250 2.0.0 Ok"
    assert client.closing


def test_a_verdict_that_ends_the_connection_waits_for_the_rest_of_the_window() -> None:
    """503 out of the blue: nothing new is submitted, and what was handed over is answered before we hang up."""
    client = window_of(8, b"x\r\n", b"x\r\n", b"x\r\n")
    refused = b"250 2.0.0 Ok\r\n503 5.5.1 nested\r\n503 5.5.1 no\r\n503 5.5.1 no\r\n"
    assert client.receive(refused + WELL)[0] == []
    assert (client.room(), client.closing, client.idle) == (0, False, False)
    concluded, _ = client.receive(WELL)
    assert [c.event for c in concluded] == [Event.BAD_SEQUENCE, Event.OK, Event.OK]
    assert client.closing
    assert client.quit() == b""


def test_no_goodbye_is_said_with_messages_in_flight() -> None:
    """QUIT would be read as the next command of the window."""
    client = window_of(2, b"x\r\n")
    with pytest.raises(AssertionError, match="in flight"):
        client.quit()
    client.receive(WELL)
    assert client.quit() == b"QUIT\r\n"
    assert client.stage is Stage.QUIT


def test_an_endless_reply_is_cut_short() -> None:
    """Neither a line nor a reply may grow for ever."""
    client = window_of(1, b"x\r\n")
    assert [c.event for c in client.receive(b"2" * 10_000)[0]] == [Event.GARBAGE_AFTER]
    client = window_of(1, b"x\r\n")
    events = [c.event for _ in range(1000) for c in client.receive(b"250-" + b"x" * 100 + b"\r\n")[0]]
    assert events == [Event.GARBAGE_AFTER]
    assert client.fault == "a reply without an end"


class Mortal(ScriptedRelay):
    """A relay that reads and says only so many bytes; what it accepted before it died, it keeps."""

    def __init__(self, script: dict, reads: int, says: int) -> None:  # type: ignore[type-arg]
        super().__init__(script)
        self._reads, self._says = reads, says

    def feed(self, data: bytes) -> bytes:
        """As before, until it dies."""
        data, self._reads = data[: self._reads], max(0, self._reads - len(data))
        out = super().feed(data)
        out, self._says = out[: self._says], max(0, self._says - len(out))
        return out


FOR_EVER = 1 << 30
BYE = b"421 4.3.2 bye"
LIFE = st.one_of(st.just(FOR_EVER), st.integers(0, 1200))
REFUSALS = st.sampled_from(
    [b"450 4.2.1 later", b"550 5.1.1 no", b"554-5.7.1 a\r\n554 5.7.1 b", b"452 4.3.1 full", b"503 5.5.1 no",
     BYE, (BYE, CLOSE), CLOSE]
)  # fmt: skip
PLACES = st.tuples(st.integers(0, 7), st.sampled_from(["RSET", "MAIL", "RCPT", "DATA", "BODY"]))


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(list(Mode)),
    st.dictionaries(PLACES, REFUSALS, max_size=8),
    st.integers(1, 6),
    st.tuples(LIFE, LIFE),
    st.lists(st.integers(0, 50), min_size=1, max_size=5),
    st.sampled_from(["lost", "timeout"]),
)
def test_the_books_agree_with_a_relay_that_refuses_at_random_and_may_die_at_any_byte(
    mode: Mode,
    script: dict,  # type: ignore[type-arg]
    window: int,
    life: tuple[int, int],
    cuts: list[int],
    why: str,
) -> None:
    """What it accepted is SENT or UNCERTAIN, what is SENT it accepted, and each message has one verdict that can be."""
    if min(life) < FOR_EVER:  # one that goes on after 421 is a liar; if it then dies, too, nobody can know
        script = {place: (BYE, CLOSE) if answer == BYE else answer for place, answer in script.items()}
    relay = Mortal(script, *life)
    client = Transactions(mode)
    client.window = window
    messages = [Message(body=b"%d\r\n.dots\r\n" % n) for n in range(1, 8)]
    run = drive(client, relay, messages, cuts=cuts, why=why)
    states = {c.number: decide(c).state for c in run.concluded}
    assert len(states) == len(run.concluded)
    assert [c.number for c in run.concluded] == sorted(states)
    assert all(c.event in CONCLUDES[mode][c.stage] for c in run.concluded)
    accepted = {int(body.split()[0]) for *_, body in relay.accepted}
    assert all(states[number] in (States.SENT, States.UNCERTAIN) for number in accepted)
    assert {number for number, state in states.items() if state is States.SENT} <= accepted
    assert run.in_flight_most <= (window if mode is Mode.BDAT else 2)
