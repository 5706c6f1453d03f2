"""One lease as the law of rates sees it: what it was granted, through which relays, and what became of it.

Pure bookkeeping; who gets how much is decided in `broker/rates.py`.

- Slices are used up in the order in which they were granted, so which relay's windows get what back is known, up to
  what was both spent and returned between two looks. There every relay counts as many attempts as it can have had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from broker.pool_balance import Balance
from broker.rate_windows import Windows
from shm.live.grants import LAPSE_NS

__all__ = ["Grant", "PacedLease", "Route"]


class Grant(NamedTuple):
    """A slice to push: n attempts at first_ns, first_ns + step_ns, ..., no two closer than gap_ns (0 = none).

    relay   index of the relay it is for, of a lease that has routes; -1 = the lease's own
    """

    lease: int
    n: int
    first_ns: int
    step_ns: int
    gap_ns: int
    relay: int = -1


class Route(NamedTuple):
    """A relay that a lease may use: its index, its weight in the pool, and the owner of its windows."""

    relay: int
    weight: int
    owner: str


class _Slice(NamedTuple):
    """One slice that is not known to be used up: its size, tokens granted up to and with it, when it lapses."""

    n: int
    up_to: int
    lapse_ns: int
    relay: int


class PacedLease:
    """What a lease was granted and what became of it. Counts grow only.

    owners   windows that the next slice falls under; `common` are those that all slices do
    told     (spent, returned, last attempt not later than) as last observed, not yet settled with the windows
    credits  per owner, tokens that rounding owes it
    routes   relay -> (weight, windows), if there are several
    relay    the one of `routes` that the next slice is for, else -1
    """

    __slots__ = ("balance", "common", "credits", "granted", "number", "owners", "relay", "returned", "routes", "slices",
                 "spent", "told", "turn_ns", "wanted", "weights")  # fmt: skip

    def __init__(self, number: int, common: list[Windows], now_ns: int) -> None:
        self.number = number
        self.common = self.owners = common
        self.granted = self.spent = self.returned = self.wanted = 0
        self.told: tuple[int, int, int] | None = None
        self.slices: deque[_Slice] = deque()
        self.credits: dict[Windows, float] = {}
        self.turn_ns = now_ns
        self.relay = -1
        self.routes: dict[int, Windows] = {}
        self.weights: dict[int, int] = {}
        self.balance = Balance()

    def lacks(self, now_ns: int) -> int:
        """Return how many tokens it may be given: what it wants beyond what it got; 0 if it sits on lapsed ones."""
        if self.slices and self.slices[0].lapse_ns < now_ns:
            return 0
        return max(0, self.wanted - self.granted)

    def has_turn(self) -> bool:
        """Return whether it is its turn at every owner that grants to one lease at a time."""
        return all(not w.has_gap or w.holder is self for w in self.owners)

    def grant(self, n: int, last_ns: int) -> None:
        """Remember a slice of n tokens, the last of them dated `last_ns`, for the relay chosen last."""
        self.granted += n
        self.slices.append(_Slice(n, self.granted, last_ns + LAPSE_NS, self.relay))

    def withdraw(self, n: int, now: int) -> None:
        """Forget the last slice, of n tokens."""
        piece = self.slices.pop()
        assert piece.n == n, "slices are withdrawn from the last one on"
        self.granted -= n
        for windows in self.common:
            windows.settle(now, 0, n, now)
        if piece.relay >= 0:
            self.routes[piece.relay].settle(now, 0, n, now)
            self.balance.charge(piece.relay, -n, self.weights[piece.relay])

    def take(self, relay: int) -> None:
        """Let the next slice go through this relay."""
        self.relay = relay
        self.owners = [*self.common, self.routes[relay]]

    def all_owners(self) -> Iterable[Windows]:
        """Return every window that a slice of it can fall under."""
        return (*self.common, *self.routes.values())

    def settle(self, now: int, spent: int, returned: int, last_ns: int) -> None:
        """Pass on what became of tokens, in all, to the windows they were charged to."""
        spent_now, returned_now = spent - self.spent, returned - self.returned
        for windows in self.common:
            windows.settle(now, spent_now, returned_now, last_ns)
        used = self._use_up(self.spent + self.returned, spent + returned)
        self.spent, self.returned = spent, returned
        first = True
        for relay, n in used:
            most = min(n, spent_now)
            self.routes[relay].settle(now, most, n - most, last_ns)
            if returned_now and n - most and first:  # it was the head that let its tokens lapse, the rest stood behind
                self.balance.lapsed(relay, n - most, self.weights[relay], self.routes)
            elif n > most:
                self.balance.charge(relay, most - n, self.weights[relay])
            first = first and not n - most

    def _use_up(self, before: int, after: int) -> list[tuple[int, int]]:
        """Return (relay, tokens) used between two totals, in order; a relay once. Slices used up are dropped."""
        used: dict[int, int] = {}
        while self.slices:
            piece = self.slices[0]
            n = min(after, piece.up_to) - max(before, piece.up_to - piece.n)
            if n > 0 and piece.relay >= 0:
                used[piece.relay] = used.get(piece.relay, 0) + n
            if piece.up_to > after:
                break
            self.slices.popleft()
        return list(used.items())
