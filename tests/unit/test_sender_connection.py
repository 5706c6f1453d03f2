"""The window of a connection (actors/sender/connection.py): how it opens, and what makes it begin anew."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors.sender.connection import Connection
from actors.smtp.outcome import Connection as Action
from actors.smtp.outcome import Outcome
from actors.smtp.rules import About
from actors.smtp.session import Features
from actors.smtp.transaction import Mode
from shm.files.ledger import States


def connection(mode: Mode = Mode.BDAT, *, allowed: int = 16, size: int | None = None) -> Connection:
    """A connection that nothing is ever written to, in a pool that allows this window."""
    transport = SimpleNamespace(get_extra_info=lambda _: None, set_write_buffer_limits=lambda **_: None)
    session = SimpleNamespace(transport=transport, features=Features(size=size), mode=mode)
    pool = SimpleNamespace(window=allowed, relay=SimpleNamespace(name="default"))
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
    one.falter(refused(blame))
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
