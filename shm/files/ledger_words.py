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

from shm.files.ledger_states import AGAIN, ATTEMPTS_MAX, STATE_MASK, STICKY, Counts, States

__all__ = [
    "Rows",
    "RowsLike",
    "Words",
    "count_rows",
    "due_rows",
    "expired_rows",
    "move",
    "next_due",
    "released",
    "rows_in",
]

Words: TypeAlias = npt.NDArray[np.uint64]
Rows: TypeAlias = npt.NDArray[np.int64]
RowsLike: TypeAlias = npt.NDArray[np.integer] | Sequence[int]

SECOND_NS: Final = 1_000_000_000
LOW: Final = np.uint64(0xFFFF_FFFF)
HIGH_SHIFT: Final = np.uint64(32)
STATE: Final = np.uint64(STATE_MASK)
NO_STATE: Final = ~STATE
LOW_BYTE: Final = np.uint64(0xFF)  # state, again, sticky and the bits between, which are zero
NOT_MAILED: Final = (States.SUPPRESSED, States.CANCELLED)

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


def next_due(words: Words, after_s: int) -> int:
    """Earliest next attempt of a DEFERRED row that is later than `after_s`; 0 if there is none."""
    times = words[rows_in(words, (States.DEFERRED,)), 1] & LOW
    later = times[times > after_s]
    return int(later.min()) if len(later) else 0


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
    low = np.bincount((a & LOW_BYTE).view(np.int64), minlength=256).reshape(16, 16)  # bits 4-7 by bits 0-3
    by_state = tuple(low[:: AGAIN >> 4].sum(axis=0)[: len(States)].tolist())
    if sum(by_state) != len(a):
        row = int(np.flatnonzero((a & np.uint64(0x30) != 0) | (a & STATE >= len(States)))[0])
        raise ValueError(f"row {row} begins with byte {int(a[row] & LOW_BYTE)}, which is no state")
    resent = int(low[AGAIN >> 4].sum() + low[(STICKY | AGAIN) >> 4].sum())
    tried = a.view(np.uint8).reshape(-1, 8)[:, 1]
    attempts = int(tried.sum(dtype=np.int64))
    halves = words.view(np.uint32).reshape(-1, 4)
    states = a & STATE
    # a time of 0 is none: a reader may meet the word B of a row that has moved on since its word A was read
    next_s = _least(halves[:, 2] * (states == States.DEFERRED)) if by_state[States.DEFERRED] else 0
    if attempts:
        seconds = halves[:, 3] * (tried > 0)
        # a concluded row no longer knows its first attempt: this one is up to one conversation too late
        first_ns = first_ns or _least(seconds) * SECOND_NS
        last_ns = max(last_ns, int((seconds * _among(states, ATTEMPT_ENDS)).max()) * SECOND_NS)
    return Counts(by_state, attempts, resent, next_s, first_ns, last_ns)


def released(a: Words) -> Words:
    """Words A of CLAIMED rows that go back: PENDING if never attempted and not sticky, else DEFERRED."""
    fresh = a & (STICKY | ATTEMPTS_MAX << 8) == 0
    return (a & NO_STATE) | np.where(fresh, States.PENDING, States.DEFERRED).astype(np.uint64)


def move(words: Words, rows: RowsLike, to: States, *, frm: Sequence[States], at_s: int | None = None) -> None:
    """Put `rows` into state `to`. With `at_s` they conclude at that time, else word B is not touched.

    A sticky row that would be SUPPRESSED or CANCELLED becomes UNCERTAIN: an earlier attempt may have been accepted.
    """
    index = np.asarray(rows, np.intp)
    a = words[index, 0]
    assert bool(_among(a & STATE, frm).all()), f"a row that becomes {to.name} comes from {frm}"
    if at_s is not None:
        words[index, 1] = np.uint64(at_s << 32)
    ends = np.where(a & STICKY, States.UNCERTAIN, to) if to in NOT_MAILED else to
    words[index, 0] = (a & NO_STATE) | np.asarray(ends, np.uint64)


def _among(states: Words, wanted: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which of `states` are in `wanted`: a bit test, some times faster than numpy.isin."""
    bits = sum(1 << state for state in set(wanted))
    among: npt.NDArray[np.bool_] = (np.uint64(bits) >> states & np.uint64(1)).astype(np.bool_)
    return among


def _least(times: npt.NDArray[np.uint32]) -> int:
    """The least time that is not 0, or 0: one below 0 is the largest number there is."""
    return (int((times - np.uint32(1)).min()) + 1) & 0xFFFF_FFFF
