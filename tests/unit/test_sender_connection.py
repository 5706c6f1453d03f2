"""The window of a connection (actors/sender/connection.py): how it opens, and what makes it begin anew."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors.sender.connection import Connection
from actors.sender.learnt import IMPATIENT_NS, PATIENT, REFUSED_MAX, Patience
from actors.smtp.outcome import Connection as Action
from actors.smtp.outcome import Outcome
from actors.smtp.rules import About
from actors.smtp.session import Features
from actors.smtp.transaction import Concluded, Event, Mode, Stage
from shm.files.ledger import States


def connection(mode: Mode = Mode.BDAT, *, allowed: int = 16, size: int | None = None) -> Connection:
    """A connection that nothing is ever written to, in a pool that allows this window."""
    transport = SimpleNamespace(get_extra_info=lambda _: None, set_write_buffer_limits=lambda **_: None)
    session = SimpleNamespace(transport=transport, features=Features(size=size), mode=mode)
    pool = SimpleNamespace(window=allowed, relay=SimpleNamespace(name="default"), patience=Patience())
    return Connection(*cast("tuple[Any, Any, Any]", (SimpleNamespace(at_ns=None), pool, session)), 0)


def refused(blame: About) -> Outcome:
    return Outcome(States.DEFERRED, Action.KEEP, blame, False)


def test_a_window_doubles_with_each_full_window_that_was_accepted() -> None:
    """1, 2, 4, 8, as much as the pool allows; half a window does nothing."""
    one = connection(allowed=6)
    seen = [one.transactions.window]
    for taken in (1, 1, 1, 2, 2, 6, 6):
        one.accepted(taken)
        seen.append(one.transactions.window)
    assert seen == [1, 2, 2, 4, 4, 6, 6, 6]
    assert one.replied == 19


def test_a_window_never_exceeds_what_the_pool_allows_now() -> None:
    """The pool may take it back at any time."""
    one = connection()
    for taken in (1, 2, 4, 8):
        one.accepted(taken)
    assert one.transactions.window == 16
    one.pool.window = 3
    one.accepted(1)
    assert one.transactions.window == 3


@pytest.mark.parametrize("blame", About)
def test_trouble_that_is_not_about_one_recipient_begins_anew(blame: About) -> None:
    """A full mailbox says nothing of what the relay can carry."""
    one = connection()
    one.accepted(1)
    one.accepted(2)
    one.falter(refused(blame), Concluded(1, Stage.RCPT, None, Event.PERMANENT))
    personal = blame in (About.RECIPIENT, About.MAILBOX_FULL, About.GREYLISTING)
    assert one.transactions.window == (4 if personal else 1)


def test_without_bdat_there_is_no_window() -> None:
    """What was accepted is counted, and that is all."""
    one = connection(Mode.PIPELINING)
    for _ in range(5):
        one.accepted(1)
    assert (one.replied, one.transactions.window, one.windowed) == (5, 1, False)


def test_what_the_relay_does_not_take_is_said_with_both_numbers() -> None:
    """SIZE 0 and no SIZE are no limit (RFC 1870)."""
    assert connection(size=3000).refusal(3001, smtputf8=False) == (
        "the message has 3001 bytes, relay `default` takes 3000"
    )
    assert connection(size=3000).refusal(3000, smtputf8=False) == ""
    for unlimited in (0, None):
        assert connection(size=unlimited).refusal(10**9, smtputf8=False) == ""
    assert "SMTPUTF8" in connection().refusal(1, smtputf8=True)


def test_refusals_end_windows_until_the_relay_is_known_to_be_patient() -> None:
    """Without windows, behind an RSET of its own, it proves patience; then it makes room, and others have no limit."""
    one = connection()
    for _ in range(REFUSED_MAX):
        assert one.room()
        one.turned_down()
    assert one.room() == 0
    written = walked(one)
    one.data_received(b"")
    assert written == [b"RSET\r\n"]
    assert not one.windowed
    assert one.transactions.mode is Mode.PIPELINING
    assert one.room() == 1
    for _ in range(PATIENT - REFUSED_MAX):
        assert one.left > 0
        one.turned_down()
    assert one.left == 0
    other = connection()
    other.pool = one.pool
    for _ in range(1000):
        other.turned_down()
    assert other.left > 0
    assert other.windowed
    assert other.room()


def test_a_relay_that_hung_up_is_left_with_half_of_the_refusals_it_bore() -> None:
    """For ten minutes; a relay thought to be patient that does so has to prove it again."""
    patience = Patience()
    patience.hung_up(11, 0)
    assert (patience.most(1), patience.impatient(1)) == (5, True)
    assert (patience.most(IMPATIENT_NS + 1), patience.impatient(IMPATIENT_NS + 1)) == (REFUSED_MAX, False)
    assert patience.bore(PATIENT)
    assert patience.most(0) is None
    patience.hung_up(900, IMPATIENT_NS + 1)
    assert (patience.most(IMPATIENT_NS + 2), patience.impatient(IMPATIENT_NS + 2)) == (REFUSED_MAX, False)


@pytest.mark.parametrize("mode", [Mode.PIPELINING, Mode.BDAT])
def test_a_reply_that_drips_in_has_no_more_time_than_one_that_does_not_come(mode: Mode) -> None:
    """Bytes of it, and messages handed over behind, put nothing off; a whole reply does."""
    one = connection(mode)
    limits = dict.fromkeys(Stage, 10**9)
    walked(one)
    began_ns = one.opened_ns
    one.flights.append((1, cast("Any", None), 0, began_ns))
    one.submit(1, b"a@example.com", b"b@example.com", b"x\r\n")
    for byte in b"250 2.0.0 O":
        one.data_received(bytes([byte]))
        assert one.used_ns > began_ns
    one.used_ns = began_ns + 10**9  # as a message behind it would
    assert one.overdue(began_ns + 10**9 + 1, limits)
    one.data_received(b"k\r\n")
    assert not one.overdue(began_ns + 10**9 + 1, limits)


def walked(one: Connection) -> list[bytes]:
    """Let a connection write; what it does."""
    written: list[bytes] = []
    one._at_ns = cast("Any", int)
    one._walk = cast("Any", SimpleNamespace(refill=lambda _one, out, _now_s: written.append(out)))
    return written


@pytest.mark.parametrize(("stage", "judged"), [(Stage.MAIL, 2), (Stage.RCPT, 0), (Stage.BODY, 0)])
def test_a_message_that_kills_its_connection_tells_nothing_of_the_relay(stage: Stage, judged: int) -> None:
    """Only a relay that closes between two messages has had enough of the connection."""
    one = connection()
    one.accepted(1)
    one.accepted(1)
    one.falter(refused(About.OTHER), Concluded(3, stage, None, Event.LOST_BEFORE))
    assert one._carried == judged
    fresh = connection()
    fresh.falter(refused(About.OTHER), Concluded(1, stage, None, Event.LOST_BEFORE))
    assert fresh.made_no_progress == (stage is Stage.MAIL)
