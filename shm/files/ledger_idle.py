"""What the broker does to a ledger that nobody leases: recovery after a death, cancel, retry, give-up, poison.

The broker is the leaseholder of every idle shard, so the law of a holder is its law too. Each change here

1. makes the summary untrue on the disk, if it was true,
2. stores word B, then word A, of the rows,
3. syncs them, writes the summary anew and syncs that,

so a crash between any two steps leaves a ledger that is counted from its rows. A change that finds no row writes
nothing. The syncs make these functions slow (milliseconds): they run in a worker thread, never on the broker's loop.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from shm.files.ledger_states import AGAIN, STICKY, States
from shm.files.ledger_words import HIGH_SHIFT, NO_STATE, STATE, Rows, Words, expired_rows, move, released, rows_in

if TYPE_CHECKING:
    from shm.files.ledger import Ledger

__all__ = [
    "Policy", "Recovered", "Retried", "at_fault", "cancel_idle", "give_up", "recover", "retry", "retryable",
    "suppress_idle",
]  # fmt: skip

Policy = Literal["resend", "hold"]
RETRIED: Final = frozenset({States.FAILED, States.UNCERTAIN})


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a recovery changed, in rows.

    released    CLAIMED rows that went back to what they were
    poisoned    rows that became FAILED, since they crash their sender
    uncertain   rows of which nobody knows whether they were accepted; of these,
    resent      will be sent once more (policy `resend`), and
    held        stay UNCERTAIN: policy `hold`, or sent twice already
    """

    released: int = 0
    poisoned: int = 0
    uncertain: int = 0
    resent: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class Retried:
    """How many rows of each state are to be attempted again."""

    failed: int = 0
    uncertain: int = 0

    def __add__(self, other: Retried) -> Retried:
        return Retried(self.failed + other.failed, self.uncertain + other.uncertain)

    @property
    def total(self) -> int:
        """All of them."""
        return self.failed + self.uncertain


def at_fault(ledger: Ledger, at_hand: int | None) -> list[int]:
    """Rows that a holder which took one at a time can have died of: being sent, or being composed.

    at_hand   the row that it said it was composing; another CLAIMED one was merely waiting
    """
    sending = rows_in(ledger.words(), (States.SENDING,)).tolist()
    return sending if at_hand is None else [*sending, at_hand]


def recover(ledger: Ledger, *, power_lost: bool, policy: Policy, now_s: int, poison: Collection[int] = ()) -> Recovered:
    """Settle what a dead holder left CLAIMED or SENDING.

    power_lost   the machine went down since the lease was opened (the boot id differs), or the file was restored
                 after a failed sync: then a CLAIMED row may have been sent too
    policy       `resend`: a row that is not sticky is due now, sticky; `hold`: it stays UNCERTAIN. A campaign that is
                 being cancelled resends nothing, so its broker passes `hold`
    poison       rows that crash their sender (`at_fault`): those of them that are CLAIMED or SENDING fail
    A ledger whose summary is true may be passed too: after a power loss its rows may be newer than its header.
    """
    sources = (States.CLAIMED, States.SENDING)
    guilty = np.intersect1d(np.array(poison, np.int64), rows_in(ledger.words(), sources))
    poisoned = _move_durably(ledger, guilty, States.FAILED, sources, now_s)
    words = ledger.words()
    claimed = rows_in(words, (States.CLAIMED,))
    sending = rows_in(words, (States.SENDING,))
    lost = np.sort(np.concatenate((claimed, sending))) if power_lost else sending
    back = claimed[:0] if power_lost else claimed
    if len(lost) + len(back) == 0 and (ledger.is_closed or not ledger.open_epoch):
        return Recovered(poisoned=poisoned)
    ledger.distrust()
    words[back, 0] = released(words[back, 0])
    a, b = words[lost, 0], words[lost, 1]
    again = (a & STICKY == 0) if policy == "resend" else np.zeros(len(a), np.bool_)
    due_now = (b >> HIGH_SHIFT << HIGH_SHIFT) | np.uint64(now_s)  # the time of the first attempt goes on
    words[lost, 1] = np.where(again, due_now, np.uint64(now_s << 32))
    a |= np.where(a & STICKY, AGAIN, 0).astype(np.uint64)  # CLAIMED on the disk: it may have been attempted again
    words[lost, 0] = (a & NO_STATE) | np.where(again, STICKY | States.DEFERRED, States.UNCERTAIN).astype(np.uint64)
    ledger.settle()
    resent = int(np.count_nonzero(again))
    return Recovered(len(back), poisoned, len(lost), resent, len(lost) - resent)


def cancel_idle(ledger: Ledger, now_s: int) -> int:
    """PENDING, CLAIMED, DEFERRED -> CANCELLED, UNCERTAIN if sticky; how many. Recover first: SENDING is left."""
    sources = (States.PENDING, States.CLAIMED, States.DEFERRED)
    return _move_durably(ledger, rows_in(ledger.words(), sources), States.CANCELLED, sources, now_s)


def give_up(ledger: Ledger, now_s: int, give_up_s: int) -> int:
    """DEFERRED rows first attempted `give_up_s` or longer ago -> FAILED; how many. What was never attempted stays."""
    rows = expired_rows(ledger.words(), now_s, give_up_s)
    return _move_durably(ledger, rows, States.FAILED, (States.DEFERRED,), now_s)


def retry(ledger: Ledger, states: Collection[States], now_s: int, until_s: int | None = None) -> Retried:
    """FAILED and / or UNCERTAIN -> DEFERRED, due now; how many. UNCERTAIN rows become sticky.

    until_s   only rows that had concluded by then: one that failed again after it was retried is left, so that a
              retry which a crash cut short can be done again as a whole; None: all rows
    The time after which a row is given up begins anew, with its next attempt.
    """
    rows = _retryable_rows(ledger.words(), states, until_s)
    if len(rows) == 0:
        return Retried()
    ledger.distrust()
    words = ledger.words()
    a = words[rows, 0]
    unsure = a & STATE == States.UNCERTAIN
    words[rows, 1] = np.uint64(now_s)
    words[rows, 0] = (a & NO_STATE) | np.where(unsure, STICKY, 0).astype(np.uint64) | np.uint64(States.DEFERRED)
    ledger.settle()
    uncertain = int(np.count_nonzero(unsure))
    return Retried(len(rows) - uncertain, uncertain)


def retryable(ledger: Ledger, states: Collection[States], until_s: int | None = None) -> Retried:
    """What `retry` would do. Of a ledger that a holder has open too: what is counted here it does not touch."""
    words = ledger.words()
    rows = _retryable_rows(words, states, until_s)
    uncertain = int(np.count_nonzero(words[rows, 0] & STATE == States.UNCERTAIN))
    return Retried(len(rows) - uncertain, uncertain)


def _retryable_rows(words: Words, states: Collection[States], until_s: int | None) -> Rows:
    """Rows in `states` that had concluded by `until_s`."""
    assert RETRIED.issuperset(states), "only what failed or is uncertain is retried"
    rows = rows_in(words, tuple(states))
    return rows if until_s is None else rows[words[rows, 1] >> HIGH_SHIFT <= until_s]


def suppress_idle(ledger: Ledger, rows: Rows, now_s: int) -> int:
    """PENDING, DEFERRED -> SUPPRESSED, UNCERTAIN if sticky, among `rows`; how many.

    For what was suppressed while nobody could lease it.
    """
    sources = (States.PENDING, States.DEFERRED)
    open_rows = np.intersect1d(rows, rows_in(ledger.words(), sources))
    return _move_durably(ledger, open_rows, States.SUPPRESSED, sources, now_s)


def _move_durably(ledger: Ledger, rows: Rows, to: States, sources: tuple[States, ...], now_s: int) -> int:
    if len(rows):
        ledger.distrust()
        move(ledger.words(), rows, to, frm=sources, at_s=now_s)
        ledger.settle()
    return len(rows)
