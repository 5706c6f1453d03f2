"""Whole-ledger questions and moves: numpy over the two words of every row.

`words` is always the u8 array of shape (rows, 2) over the mapping. Another process may be writing it: each scan copies
a column once and answers from the copy, so that its numbers agree with each other (every row is in exactly one state).

Moves store word B of all rows, then word A of all rows, and assert that each row came from where it may come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from shm.files.ledger_states import ATTEMPTS_MAX, STATE_MASK, STICKY, Counts, States

__all__ = ["Rows", "RowsLike", "Words", "count_rows", "due_rows", "expired_rows", "move", "released", "rows_in"]

Words: TypeAlias = npt.NDArray[np.uint64]
Rows: TypeAlias = npt.NDArray[np.int64]
RowsLike: TypeAlias = npt.NDArray[np.integer] | Sequence[int]

SECOND_NS: Final = 1_000_000_000
LOW: Final = np.uint64(0xFFFF_FFFF)
HIGH_SHIFT: Final = np.uint64(32)
STATE: Final = np.uint64(STATE_MASK)
NO_STATE: Final = ~STATE
CODES: Final = 1 << 4  # numbers that four bits can hold

# states whose time in B is the conclusion of an attempt, if there was one
ATTEMPT_ENDS: Final = (States.SENT, States.BOUNCED, States.FAILED, States.UNCERTAIN)


def rows_in(words: Words, states: Sequence[int]) -> Rows:
    """Row numbers, in order, whose state is one of `states`. A copy."""
    return np.flatnonzero(_among(words[:, 0] & STATE, states))


def due_rows(words: Words, now_s: int) -> Rows:
    """Row numbers, in order, that are PENDING, or DEFERRED with a next attempt at or before `now_s`."""
    states = words[:, 0] & STATE
    due = states == States.PENDING
    deferred = states == States.DEFERRED
    if deferred.any():
        due |= deferred & (words[:, 1] & LOW <= now_s)
    rows: Rows = np.flatnonzero(due)
    return rows


def expired_rows(words: Words, now_s: int, give_up_s: int) -> Rows:
    """Row numbers, in order, that are DEFERRED and were first attempted `give_up_s` or longer before `now_s`."""
    deferred = rows_in(words, (States.DEFERRED,))
    first = words[deferred, 1] >> HIGH_SHIFT
    expired: Rows = deferred[(first > 0) & (first + np.uint64(give_up_s) <= now_s)]
    return expired


def count_rows(words: Words, first_ns: int, last_ns: int) -> Counts:
    """Count every row. `first_ns` and `last_ns` are what the header knows of the two times (0: nothing).

    Raises ValueError, naming the row, for a state that does not exist.
    """
    a = words[:, 0].copy()
    states = (a & STATE).view(np.int64)
    found = np.bincount(states, minlength=CODES)
    if found[len(States) :].any():
        row = int(np.flatnonzero(states >= len(States))[0])
        raise ValueError(f"row {row} has state {int(states[row])}, which does not exist")
    by_state = tuple(found[: len(States)].tolist())
    if by_state[States.PENDING] + by_state[States.DUPLICATE] == len(a):
        return Counts(by_state, 0, int(np.count_nonzero(a & STICKY)), 0, first_ns, last_ns)
    attempts = a >> np.uint64(8) & ATTEMPTS_MAX
    next_s = 0
    if by_state[States.DEFERRED]:
        times = words[states == States.DEFERRED, 1] & LOW
        times = times[times > 0]  # 0: its holder has just concluded it
        next_s = int(times.min()) if len(times) else 0
    first_s, last_s = _times(words, states, attempts > 0)
    return Counts(
        by_state,
        int(attempts.sum()),
        int(np.count_nonzero(a & STICKY)),
        next_s,
        first_ns or first_s * SECOND_NS,
        max(last_ns, last_s * SECOND_NS),
    )


def released(a: Words) -> Words:
    """Words A of CLAIMED rows that go back: PENDING if never attempted and not sticky, else DEFERRED."""
    fresh = a & (STICKY | ATTEMPTS_MAX << 8) == 0
    return (a & NO_STATE) | np.where(fresh, States.PENDING, States.DEFERRED).astype(np.uint64)


def move(words: Words, rows: RowsLike, to: States, *, frm: Sequence[States], at_s: int | None = None) -> None:
    """Put `rows` into state `to`. With `at_s` they conclude at that time, else word B is not touched."""
    index = np.asarray(rows, np.intp)
    a = words[index, 0]
    assert bool(_among(a & STATE, frm).all()), f"a row that becomes {to.name} comes from {frm}"
    if at_s is not None:
        words[index, 1] = np.uint64(at_s << 32)
    words[index, 0] = (a & NO_STATE) | np.uint64(to)


def _among(states: Words, wanted: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which of `states` are in `wanted`: a bit test, some times faster than numpy.isin."""
    bits = sum(1 << state for state in set(wanted))
    among: npt.NDArray[np.bool_] = (np.uint64(bits) >> states & np.uint64(1)).astype(np.bool_)
    return among


def _times(words: Words, states: npt.NDArray[np.int64], attempted: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Seconds of the first attempt and of the last conclusion that the rows still know; 0 for none.

    A concluded row no longer knows its first attempt, so the first time is then up to one conversation too late.
    """
    seconds = (words[:, 1] >> HIGH_SHIFT)[attempted]
    ended = _among(states[attempted].view(np.uint64), ATTEMPT_ENDS)
    known = seconds[seconds > 0]
    first = int(known.min()) if len(known) else 0
    concluded = seconds[ended]
    return first, int(concluded.max()) if len(concluded) else 0
