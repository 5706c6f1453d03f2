"""Which relay of a pool the next slice of a campaign goes through: the one furthest below its weight.

Pure. Counts what was offered to each relay of a campaign, over all its leases, and takes back what was not used.

- Among relays that may be used now, offers stay within one turn of their weights. A turn is a 64th of what was
  offered so far, so a small campaign keeps its weights to a few messages and a large one does not chop its slices.
- A relay that let a slice lapse could not carry it, and is owed nothing: it is put level with the others. Else a slow
  relay would be offered everything until it had caught up, and hold up the fast ones.
- Nor is one owed more than `OWED` turns that could not be used for a while: it would get everything when it is back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["Balance"]

TURN_LEAST: Final = 4
TURN_MOST: Final = 1024
TURN_SHARE: Final = 64
OWED: Final = 2


class Balance:
    """What the relays of one campaign were offered, by relay index."""

    __slots__ = ("_offered", "_total")

    def __init__(self) -> None:
        self._offered: dict[int, float] = {}  # tokens / weight
        self._total = 0

    @property
    def turn(self) -> int:
        """Tokens that go through one relay before the next is chosen."""
        return min(max(TURN_LEAST, self._total // TURN_SHARE), TURN_MOST)

    def forgive(self, weights: Mapping[int, int]) -> None:
        """Owe nobody more than a few turns. Before what is offered now is charged, since some of that comes back."""
        least = max(self._offered.values(), default=0.0) - OWED * self.turn / min(weights.values())
        for relay in weights:
            self._offered[relay] = max(self._offered.get(relay, 0.0), least)

    def choose(self, relays: Iterable[int]) -> int:
        """The relay whose turn it is, among those that may be used now (at least one)."""
        return min(relays, key=lambda relay: (self._offered.get(relay, 0.0), relay))

    def charge(self, relay: int, n: int, weight: int) -> None:
        """Count n tokens as offered to a relay; negative: they were not, after all."""
        self._offered[relay] = self._offered.get(relay, 0.0) + n / weight
        self._total += n

    def lapsed(self, relay: int, n: int, weight: int, others: Iterable[int]) -> None:
        """A relay did not use n of its tokens in time."""
        self.charge(relay, -n, weight)
        level = max((self._offered.get(other, 0.0) for other in others), default=0.0)
        self._offered[relay] = max(self._offered[relay], level)
