"""Whose turn it is among the leases that have something to send through one relay; a turn is a message.

Policy only, and pure: no clock, no row, no socket.

- Campaigns take turns by their weight, however many leases each has here; the leases of one campaign take turns
  evenly.
- Leases given for retries have at most their share of the turns while a lease with fresh mail stands here, and all of
  them while none does.
- One lease alone, the common case, costs nothing: it is `alone`, and nobody is asked.
"""

from __future__ import annotations

from collections import deque
from math import gcd
from typing import TYPE_CHECKING

from actors.sender.retry import RETRY_SHARE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actors.sender.lease import Lease

__all__ = ["Lanes"]


class _Share:
    """The leases of one campaign, and how many turns it has left before the next campaign's."""

    __slots__ = ("campaign", "leases", "left", "turns")

    def __init__(self, campaign: int) -> None:
        self.campaign = campaign
        self.leases: deque[Lease] = deque()
        self.turns = self.left = 1


class _Round:
    """Campaigns in turn, each for as many turns as its weight says."""

    __slots__ = ("_shares",)

    def __init__(self) -> None:
        self._shares: deque[_Share] = deque()

    def __bool__(self) -> bool:
        return bool(self._shares)

    def __iter__(self) -> Iterator[Lease]:
        for share in self._shares:
            yield from share.leases

    def add(self, lease: Lease) -> None:
        """Let a lease take turns, behind the others of its campaign."""
        share = next((share for share in self._shares if share.campaign == lease.offer.campaign), None)
        if share is None:
            share = _Share(lease.offer.campaign)
            self._shares.append(share)
        share.leases.append(lease)
        self._weigh()

    def remove(self, lease: Lease) -> None:
        """Take out a lease that stands here."""
        share = next(share for share in self._shares if lease in share.leases)
        share.leases.remove(lease)
        if not share.leases:
            self._shares.remove(share)
            self._weigh()

    def _weigh(self) -> None:
        """Turns in lowest terms: two campaigns of weight 100 change places at each message."""
        weights = [share.leases[0].weight for share in self._shares]
        unit = gcd(*weights) or 1
        for share, weight in zip(self._shares, weights, strict=True):
            share.turns = weight // unit
            share.left = min(share.left, share.turns)

    def turn(self) -> Lease:
        """Whose turn it is; somebody stands here."""
        shares = self._shares
        share = shares[0]
        lease = share.leases[0]
        if len(share.leases) > 1:
            share.leases.rotate(-1)
        share.left -= 1
        if share.left <= 0:
            share.left = share.turns
            shares.rotate(-1)
        return lease


class Lanes:
    """The leases that stand in one pool.

    alone  the only one there is; None if there is none, or several
    """

    __slots__ = ("_due", "_fresh", "_retries", "_step", "alone")

    def __init__(self, retry_share: float = RETRY_SHARE) -> None:
        self.alone: Lease | None = None
        self._fresh = _Round()
        self._retries = _Round()
        self._due = 0.0  # turns that retries have earned
        self._step = retry_share / (1 - retry_share) if retry_share < 1 else float("inf")  # by each fresh one

    def __bool__(self) -> bool:
        return self.alone is not None or bool(self._fresh) or bool(self._retries)

    def __iter__(self) -> Iterator[Lease]:
        yield from self._fresh
        yield from self._retries

    def append(self, lease: Lease) -> None:
        """Let a lease take its turns."""
        (self._retries if lease.retry else self._fresh).add(lease)
        self._look()

    def remove(self, lease: Lease) -> None:
        """Take a lease out."""
        (self._retries if lease in tuple(self._retries) else self._fresh).remove(lease)
        self._look()

    def _look(self) -> None:
        standing = tuple(self)
        self.alone = standing[0] if len(standing) == 1 else None

    def turn(self) -> Lease | None:
        """Whose turn it is where several stand; None if there is none."""
        if self.alone is not None:
            return self.alone
        if not self._retries:
            return self._fresh.turn() if self._fresh else None
        if self._fresh:
            if self._due < 1:
                self._due = min(self._due + self._step, 2.0)
                return self._fresh.turn()
            self._due -= 1
        return self._retries.turn()
