"""One shard in this sender's hands: which rows are due, claimed, durable and in flight.

Mechanism of rows only: it knows no socket, no relay and no thread, and runs on the loop (`handover` opens and closes
the files, off it).

- A row may be attempted only when it is in `ready`: a sync returned after it was claimed.
- Rows are claimed for about the next two sync intervals, no more: after a power loss these are the uncertain ones.
- Of the rows claimed at most the retry share are retries, while fresh rows remain.
- Whoever is overdue is given up, also while nothing can be claimed: no relay, no grants.
- While stopping no row is claimed; what is in flight concludes; then the summary is written and the epoch closed.
- After a failed sync nothing more is claimed or sent, and the epoch stays open: the broker recounts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from actors.message.compose import Composer
from actors.sender.lanes import Lanes
from actors.sender.pace import Pace
from actors.sender.retry import RetryPolicy
from actors.sender.suppress import matching_rows
from shm.files.bundle import Bundle
from shm.files.ledger import Ledger, States
from shm.files.replies import Replies
from shm.files.shard import Shard
from shm.live import counters
from shm.live.leases import CANCEL, RUN, unpack_order

__all__ = ["CLAIMED_MAX", "CLAIMED_MIN", "CLAIMED_MIN_GATED", "Lease", "Offer", "next_target"]

CLAIMED_MIN: Final = 64  # rows claimed ahead whatever the rate, so that a fast start does not wait for many syncs
CLAIMED_MIN_GATED: Final = 8  # a gated lease may wait an hour for its grants with these rows claimed
CLAIMED_MAX: Final = 4096  # two intervals of 50 ms at 40,000 messages/s, above what one process sends
NO_ORDER: Final = -1  # no broker's word is equal to it
SOON_S: Final = 2  # a retry due within this time is waited for; a later one is another lease's

_NO_ROWS: Final[npt.NDArray[np.int64]] = np.empty(0, np.int64)


class Queue:
    """Rows that are due, in order, and how far they have been taken."""

    __slots__ = ("_at", "_rows")

    def __init__(self, rows: npt.NDArray[np.int64] = _NO_ROWS) -> None:
        self._rows = rows
        self._at = 0

    def __len__(self) -> int:
        return len(self._rows) - self._at

    def take(self, n: int) -> npt.NDArray[np.int64]:
        """The next n rows, or as many as there are."""
        rows = self._rows[self._at : self._at + n]
        self._at += len(rows)
        return rows


def next_target(target: int, used: int, *, starved: bool, gated: bool) -> int:
    """How many rows to keep claimed, after an interval in which `used` were sent.

    Two intervals' worth; doubled when the lease ran dry before the sync, let down by a quarter at most.
    """
    wanted = max(2 * used, 2 * target if starved else target * 3 // 4)
    return min(max(wanted, CLAIMED_MIN_GATED if gated else CLAIMED_MIN), CLAIMED_MAX)


@dataclass(frozen=True, slots=True)
class Offer:
    """A lease as the table shows it."""

    slot: int
    number: int
    campaign: int
    shard: int
    epoch: int
    order: int


@dataclass(slots=True, eq=False)
class Lease:
    """The state of one lease.  Attributes are read and written by the walk; see the methods for what must hold.

    ready       rows that may be sent: claimed, and durably so
    claiming    rows claimed since the last sync began
    syncing     rows the running sync makes durable
    order_now   the broker's order as it is, one word in place; order_word: as last applied; action, gated, rows_max,
                relay, retry, weight are its parts
    fresh       rows never attempted; again: retries that were due when `next_due_s` was last looked for
    words       the lease's counter row (`shm.live.counters`); grant_words: its half of the grants
    in_flight   rows SENDING
    """

    offer: Offer
    bundle: Bundle
    composer: Composer
    shard: Shard
    ledger: Ledger
    replies: Replies
    policy: RetryPolicy
    places: dict[int, int]  # index in the relay table -> index in the bundle's relays, the one in the ledger
    resend: bool
    suppressed_seen: int
    keys: bytes  # the shard's keys end to end
    words: memoryview[int]
    grant_words: memoryview[int]
    pace: Pace
    trace: bytearray | None = None  # attempts of its campaign, if they are to be traced
    lanes: Lanes | None = None  # where it takes its turns, while it has something to send
    order_now: memoryview[int] = field(default_factory=lambda: memoryview(bytearray(8)).cast("q"))
    order_word: int = 0
    action: int = RUN
    gated: bool = False
    rows_max: int = 0
    relay: int = 0
    retry: bool = False
    weight: int = 1
    ready: deque[int] = field(default_factory=deque)
    claiming: list[int] = field(default_factory=list)
    syncing: list[int] = field(default_factory=list)
    silenced: set[int] = field(default_factory=set)  # suppressed while SENDING: not to be tried again
    fresh: Queue = field(default_factory=Queue)
    again: Queue = field(default_factory=Queue)
    next_due_s: int = -1  # earliest retry that is not in `again`; 0 = none, -1 = must be looked for
    earned: float = 0.0  # retries that fresh rows have made room for
    given_up_s: int = 0  # when overdue rows were last looked for
    target: int = 0
    used: int = 0
    starved: bool = False
    in_flight: int = 0
    dirty: bool = True
    leaving: bool = False  # drained: the order no longer matters
    stopped: bool = False  # what stopping asks for has been done
    closing: bool = False
    fault: str = ""
    first_attempt_ns: int = 0  # monotonic
    last_conclusion_ns: int = 0  # monotonic

    @property
    def stopping(self) -> bool:
        """Whether nothing more may be claimed or sent."""
        return self.leaving or self.action != RUN or bool(self.fault)

    @property
    def cancelled(self) -> bool:
        """Whether what would be tried again is cancelled instead."""
        return self.action == CANCEL

    def fail(self, fault: str) -> None:
        """Nothing more of it is claimed or sent. From any thread: the walk meets it before its next message.

        fault   one line that says why it is given back
        """
        self.fault = fault
        self.order_word = NO_ORDER  # after the fault: the walk compares this word, and whoever obeys looks at the fault

    def obey(self, word: int) -> None:
        """Take over the broker's order word."""
        self.order_word = word
        self.action, self.gated, self.rows_max, self.relay, self.retry, self.weight = unpack_order(word)

    # Rows on their way to a relay.

    def claim(self, now_s: int) -> None:
        """Claim what the next two intervals need; they may be sent once `durable` says so."""
        self.target = next_target(self.target, self.used, starved=self.starved, gated=self.gated)
        self.used, self.starved = 0, False
        want = self.target - self.claimed
        if self.rows_max:
            want = min(want, self.rows_max - self.claimed - self.in_flight)
        if want <= 0:
            return
        self._look(now_s)
        while want > 0 and self.left:
            rows = self._next_rows(want)
            states = self.ledger.words()[rows, 0] & np.uint64(0xF)
            rows = rows[(states == States.PENDING) | (states == States.DEFERRED)]
            self.ledger.claim(rows)
            self.claiming.extend(rows.tolist())
            self.dirty = True
            want -= len(rows)

    def _next_rows(self, want: int) -> npt.NDArray[np.int64]:
        """Due rows, `want` at most: fresh ones, and retries for their share; for all that fresh ones leave free."""
        if not self.again:
            return self.fresh.take(want)
        self.earned = min(self.earned + want * self.policy.share, CLAIMED_MAX)
        retries = min(int(self.earned), want, len(self.again))
        rows = self.fresh.take(want - retries)
        self.earned -= retries
        return np.concatenate((rows, self.again.take(want - len(rows))))

    @property
    def claimed(self) -> int:
        """Rows CLAIMED, durably or not."""
        return len(self.ready) + len(self.claiming) + len(self.syncing)

    @property
    def left(self) -> int:
        """Rows known to be due and not yet claimed (an upper bound)."""
        return len(self.fresh) + len(self.again)

    def _look(self, now_s: int) -> None:
        """Look for due rows, if any may have become due since the last look."""
        if self.next_due_s == 0 or self.next_due_s > now_s:
            return
        self.give_up(now_s)
        due = self.ledger.due(now_s)
        fresh = self.ledger.words()[due, 0] & np.uint64(0xF) == States.PENDING
        self.fresh, self.again = Queue(due[fresh]), Queue(due[~fresh])
        self.next_due_s = self.ledger.next_due_s(now_s)

    def give_up(self, now_s: int) -> None:
        """Fail every row that is overdue and not in flight; looks once a second at most."""
        if now_s == self.given_up_s:
            return
        self.given_up_s = now_s
        first_s = now_s - self.policy.give_up_s
        late = [] if self.used else [row for row in self.ready if 0 < self.ledger.b[row] >> 32 <= first_s]
        if late:  # retries, claimed long ago, that got no relay and no grant
            gone = set(late)
            self.ready = deque(row for row in self.ready if row not in gone)
        expired = [*self.ledger.expired(now_s, self.policy.give_up_s).tolist(), *late]
        if expired:
            self.ledger.fail(expired, now_s)
            self.words[counters.FAILED] += len(expired)
            self._look_anew()

    def _look_anew(self) -> None:
        """Rows have changed that may have been due."""
        self.fresh, self.again, self.next_due_s = Queue(), Queue(), -1
        self.dirty = True

    def begin_sync(self) -> None:
        """A sync starts now: it covers everything stored so far."""
        self.syncing, self.claiming = self.claiming, []
        self.dirty = False

    def durable(self) -> None:
        """The sync that `begin_sync` announced has returned: its claims may be sent."""
        self.ready.extend(self.syncing)
        self.syncing = []

    def deferred(self, next_s: int) -> None:
        """A row will be tried again at `next_s`."""
        if self.next_due_s >= 0:
            self.next_due_s = min(self.next_due_s, next_s) if self.next_due_s else next_s

    def exhausted(self, now_s: int) -> bool:
        """Whether it has nothing to do now or soon."""
        if self.in_flight or self.claimed:
            return False
        if self.stopping:
            return True
        self._look(now_s)
        if self.left:
            return False
        return self.next_due_s == 0 or self.next_due_s > now_s + SOON_S

    # Rows taken back.

    def unclaim(self) -> None:
        """Give back every row that is claimed and not sent."""
        rows = self._in(States.CLAIMED)
        if len(rows):
            self.ledger.unclaim(rows)
        self.ready.clear()
        self.claiming.clear()
        self.syncing.clear()
        self._look_anew()

    def cancel(self, now_s: int) -> None:
        """Cancel every row that is neither concluded nor in flight."""
        rows = self._in(States.PENDING, States.CLAIMED, States.DEFERRED)
        if len(rows):
            self.ledger.cancel(rows, now_s)
            self.words[counters.CANCELLED] += len(rows)
            self.dirty = True

    def suppress(self, entries: npt.NDArray[np.void], now_s: int) -> None:
        """Apply new entries of the suppression log; a row in flight is remembered until it concludes."""
        rows = matching_rows(self.shard.keys, entries, self.offer.campaign)
        if not len(rows):
            return
        states = self.ledger.words()[rows, 0] & np.uint64(0xF)
        self.silenced.update(rows[states == States.SENDING].tolist())
        rows = rows[(states == States.PENDING) | (states == States.CLAIMED) | (states == States.DEFERRED)]
        self.ledger.suppress(rows, now_s)
        self.words[counters.SUPPRESSED] += len(rows)
        self._look_anew()
        gone = set(rows.tolist())
        self.ready = deque(row for row in self.ready if row not in gone)
        self.claiming = [row for row in self.claiming if row not in gone]
        self.syncing = [row for row in self.syncing if row not in gone]

    def _in(self, *states: States) -> npt.NDArray[np.int64]:
        now = self.ledger.words()[:, 0] & np.uint64(0xF)
        return np.flatnonzero(np.isin(now, np.array(states, np.uint64)))
