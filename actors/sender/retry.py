"""When a deferred recipient is tried again, and when we stop trying.

Pure: times and settings in, a time out.  No clock, no file.

- An attempt is never earlier than its class's interval after the one before.
- Due times fall on a grid of the shard's own, so that a shard wakes once for all its rows, and shards do not wake
  together (design section 5, Retries).
- The last attempt lies within `give_up_s` of the first.  A recipient deferred at that age is given up.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["GIVE_UP", "RETRY_SHARE", "RetryPolicy"]

RETRY_SHARE = 0.25  # of turns and claims while fresh mail waits, unless the settings say otherwise
GIVE_UP = 0  # instead of a time: no further attempt
TICK_S = 60  # grid of due times for intervals of a minute and more, until an eighth of the interval is coarser
DOUBLINGS_MAX = 32  # 2^32 intervals are beyond any cap


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The retry rules of one shard.

    first_s, max_s   interval after the first attempt, and the cap of its doubling, seconds
    give_up_s        age, counted from the first attempt, at which a recipient is given up
    classes          {reply class: (first_s, max_s)} where a class has its own
    jitter           any number that differs between shards: places the shard's grid of due times
    share            of the rows that are claimed, at most, are retries while fresh rows remain
    """

    first_s: int
    max_s: int
    give_up_s: int
    classes: Mapping[str, tuple[int, int]]
    jitter: int
    share: float = RETRY_SHARE

    @classmethod
    def from_maps(cls, retry: Mapping[str, Any], give_up_s: int | None, campaign: int, shard: int) -> RetryPolicy:
        """Rules of a shard from `Retry.to_map()` as the bundle keeps it; the campaign's own give-up time wins."""
        first_s, max_s = int(retry["first_s"]), int(retry["max_s"])
        classes = {
            name: (int(own.get("first_s", first_s)), int(own.get("max_s", max_s)))
            for name, own in retry.get("classes", {}).items()
        }
        return cls(
            first_s=first_s,
            max_s=max_s,
            give_up_s=int(retry["give_up_s"] if give_up_s is None else give_up_s),
            classes=classes,
            jitter=zlib.crc32(b"%d/%d" % (campaign, shard)),
            share=float(retry.get("share", RETRY_SHARE)),
        )

    def interval_s(self, reply_class: str, attempts: int) -> int:
        """Seconds from attempt number `attempts` (from 1) to the next: doubling, capped, at least 1."""
        first_s, max_s = self.classes.get(reply_class, (self.first_s, self.max_s))
        return max(1, min(first_s << min(max(attempts - 1, 0), DOUBLINGS_MAX), max_s))

    def next_attempt_s(self, reply_class: str, attempts: int, now_s: int, first_attempt_s: int) -> int:
        """When to try again after attempt number `attempts` was deferred at `now_s`, or GIVE_UP.

        Beyond the give-up time the answer is that time itself: the row wakes then, to be given up.
        """
        deadline_s = first_attempt_s + self.give_up_s
        if now_s >= deadline_s:
            return GIVE_UP
        interval_s = self.interval_s(reply_class, attempts)
        tick_s = max(interval_s // 8, min(TICK_S, interval_s), 1)
        offset_s = self.jitter % tick_s
        ticks = -(-(now_s + interval_s - offset_s) // tick_s)  # rounded up
        return min(ticks * tick_s + offset_s, deadline_s)
