"""When a gated lease's next message may leave: the spending half of the grants (design section 4).

The law (buckets, counts, shares) is the broker's; here a slice of n messages, each with its earliest time, is spent
or lapses.  Pure: times come in as monotonic nanoseconds, nothing is read or written.

- Message k of a slice leaves at `first_ns + k * step_ns` or later, never earlier.
- 50 ms (`LAPSE_NS`) after its last time what is left of a slice is void and goes back to the broker.
- Two attempts under a gap are at least `gap_ns` apart, across slices, leases and campaigns' shards in this sender:
  the leases of one campaign share one `Gap`.
"""

from __future__ import annotations

from shm.live.grants import Slice

__all__ = ["NEVER_NS", "Gap", "Pace"]

NEVER_NS = 1 << 62  # no slice: no time can be named


class Gap:
    """When the campaign's last attempt left this sender."""

    __slots__ = ("last_ns",)

    def __init__(self) -> None:
        self.last_ns = -NEVER_NS


class Pace:
    """The slice a lease is spending.

    left      messages not yet spent of it
    relay     index of the relay it was granted for
    gap_ns    least time between two attempts, 0 = none: then each message is written by itself
    """

    __slots__ = ("_expires_ns", "_gap", "_next_ns", "_step_ns", "gap_ns", "left", "relay")

    def __init__(self, gap: Gap) -> None:
        self._gap = gap
        self._next_ns = self._expires_ns = self._step_ns = 0
        self.left = self.gap_ns = self.relay = 0

    def begin(self, piece: Slice) -> None:
        """Start on a new slice; the one before must be spent or lapsed."""
        assert self.left == 0, "a slice is spent or returned before the next is begun"
        self.left = piece.n
        self.relay = piece.relay
        self.gap_ns = piece.gap_ns
        self._step_ns = piece.step_ns
        self._next_ns = piece.first_ns
        self._expires_ns = piece.lapse_ns

    def due_ns(self) -> int:
        """The earliest time at which the next message may leave; NEVER_NS without a slice."""
        if not self.left:
            return NEVER_NS
        if self.gap_ns:
            return max(self._next_ns, self._gap.last_ns + self.gap_ns)
        return self._next_ns

    def spend(self, now_ns: int) -> None:
        """One message leaves at `now_ns`, which is not before `due_ns`."""
        self.left -= 1
        self._next_ns += self._step_ns
        self._gap.last_ns = now_ns

    def handed_over(self, now_ns: int) -> None:
        """The message just spent has been written: a gap is counted from here, so composing never shortens it."""
        self._gap.last_ns = now_ns

    def lapse(self, now_ns: int) -> int:
        """Messages of the slice that are void at `now_ns` and go back to the broker: 0, or all that are left."""
        if not self.left or now_ns <= self._expires_ns:
            return 0
        return self.drop()

    def drop(self) -> int:
        """Give the rest of the slice up; returns how many messages that is."""
        left, self.left = self.left, 0
        return left
