"""When a gated lease may send: its grants taken up, spent, returned, and waited for.

The times of a slice are `pace`'s, the law behind the grants is the broker's; here both meet the clock, the arena and
the alarm.  A lease that needs no grants never comes here.

- A token is stored as spent before the bytes of its message are handed over.
- What lapsed is returned at once, and no message leaves on it.
"""

from __future__ import annotations

import time
from typing import Final

from actors.sender.alarm import Alarm
from actors.sender.lease import Lease
from shm.live.grants import RETURNED, SPENT, SPENT_NS, GrantTable

__all__ = ["Gate"]

COALESCE_NS: Final = 1_000_000  # tokens without a gap are not woken for more often than this
# Under a gap the sender wakes this much early, composes, and spins to the time: a gap of 1 ms then takes 1.05 ms and
# not 1.25 (measured).  The loop stands still meanwhile, a tenth of the gap at most where it matters.
AHEAD_NS: Final = 150_000

_monotonic_ns = time.monotonic_ns


class Gate:
    """The gate of one sender's gated leases. `row`: the sender's, in every table."""

    def __init__(self, row: int, grant_table: GrantTable, alarm: Alarm) -> None:
        self._row = row
        self._next_slice = grant_table.next_slice
        self._alarm = alarm

    def open_for(self, lease: Lease, relay: int) -> bool:
        """Whether a lease may send a message through this relay now; if it may later, the alarm is set."""
        if not self.granted(lease):
            return False
        if lease.pace.relay == relay:
            return True
        self._alarm.at(_monotonic_ns())  # its next turn is in another pool
        return False

    def granted(self, lease: Lease) -> bool:
        """Whether a lease may send a message now; if it may later, the alarm is set.  Returns what lapsed."""
        pace = lease.pace
        while True:
            now_ns = _monotonic_ns()
            lapsed = pace.lapse(now_ns)
            if lapsed:
                lease.grant_words[RETURNED] += lapsed
            due_ns = pace.due_ns()
            ahead_ns = AHEAD_NS if pace.gap_ns else 0
            if due_ns <= now_ns + ahead_ns:
                return True
            if pace.left:
                self._alarm.at(due_ns - ahead_ns if ahead_ns else max(due_ns, now_ns + COALESCE_NS))
                return False
            piece = self._next_slice(self._row, lease.offer.slot)
            if piece is None:
                return False
            pace.begin(piece)

    def await_due(self, lease: Lease) -> int:
        """Spin to the time of a token that is all but due; the time it is then, or 0 if the token lapsed meanwhile."""
        pace = lease.pace
        due_ns = pace.due_ns()
        now_ns = _monotonic_ns()
        while now_ns < due_ns:
            now_ns = _monotonic_ns()
        lapsed = pace.lapse(now_ns)
        lease.grant_words[RETURNED] += lapsed
        return 0 if lapsed else now_ns

    def spend(self, lease: Lease, now_ns: int) -> None:
        """Spend a token at `now_ns`; the bytes of its message are handed over next."""
        words = lease.grant_words
        words[SPENT_NS] = now_ns
        words[SPENT] += 1
        lease.pace.spend(now_ns)

    def give_back(self, lease: Lease) -> None:
        """Return everything that was granted and not spent, slices not yet looked at too."""
        unspent = lease.pace.drop()
        while (piece := self._next_slice(self._row, lease.offer.slot)) is not None:
            unspent += piece.n
        lease.grant_words[RETURNED] += unspent
