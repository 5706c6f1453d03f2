"""When a campaign pauses by itself: bounces, deferrals or faults of ours take more than their share of the attempts.

A pure judgement over counters; `campaigns` pauses. It begins anew when the operator resumes the campaign, so that
mail that is mended is not held against its past.
"""

from dataclasses import dataclass

from broker.contract.campaign import Breaker
from shm.live.counters import Counts

__all__ = ["Tally", "Verdict", "judge"]


@dataclass(slots=True)
class Tally:
    """Events of one campaign: attempts, and what became of them as far as a breaker asks."""

    attempted: int = 0
    sent: int = 0
    bounced: int = 0
    deferred: int = 0
    sender_fault: int = 0

    def plus(self, counts: Counts) -> "Tally":
        """The sum with the counters of one lease."""
        return Tally(*(getattr(self, name) + getattr(counts, name) for name in self.__slots__))

    def minus(self, other: "Tally") -> "Tally":
        """What has come since `other`."""
        return Tally(*(getattr(self, name) - getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A share above its limit. `name`: bounced, deferred or sender_fault."""

    name: str
    count: int
    attempted: int
    limit: float

    @property
    def message(self) -> str:
        """One line for people."""
        word = {"bounced": "bounced", "deferred": "were deferred", "sender_fault": "were refused for our own fault"}
        share = self.count / self.attempted
        return f"{share:.1%} of {self.attempted:,} attempts {word[self.name]}, the limit is {self.limit:.0%}"


def judge(breaker: Breaker, tally: Tally) -> Verdict | None:
    """The first limit that is passed, once `breaker.after` attempts were made; None while all is well."""
    if tally.attempted < breaker.after:
        return None
    for name in ("sender_fault", "bounced", "deferred"):
        count, limit = getattr(tally, name), getattr(breaker, name)
        if limit and count > limit * tally.attempted:
            return Verdict(name, count, tally.attempted, limit)
    return None
