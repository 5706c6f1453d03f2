"""The law of the limits of one owner, a campaign or a relay: how many attempts may be granted, and for when.

Pure: monotonic times in ns come in; what must outlive the broker stands in a `WindowFile`. Who gets the tokens is
`broker/rates.py`.

With outstanding = granted - spent - returned, over all leases of the owner:
- *Rate*: bucket + outstanding <= depth; the refill stops there. So attempts in any t seconds <= depth + rate * t.
  Tokens may be granted before they exist, dated for when they will: the bucket is in debt until then.
- *Count*, per minute, hour and day: attempts of the last interval + outstanding <= limit.
- *Gap*: one lease at a time holds the turn; it alone keeps `wait_ms` between its attempts. The next one gets its turn
  when nothing is outstanding, its first time at least the gap after the last attempt that can have been made.
- *Cooldown*: a grant that leaves less than a token in the bucket is the last one until nothing is outstanding, and the
  next one's first time is at least `cooldown_ms` after the last attempt. The refill goes on meanwhile.
What the broker has not heard of is outstanding; what it hears of is dated by when it hears, or by the actor's own
`spent_ns`, which is never earlier than the attempt. Every rounding is towards fewer attempts.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from shm.files.windows import Found, Parts, WindowFile
from shm.live.grants import LAPSE_NS

__all__ = ["HORIZON_NS", "REACH_NS", "Bucket", "RateLike", "Windows"]

REACH_NS: Final = 50_000_000  # how far ahead of now the last time of a slice may be
HORIZON_NS: Final = REACH_NS - 1_000_000  # what is planned for: rounding steps up to whole ns must not pass the reach
RUN_NS: Final = 500_000_000  # a turn, once others wait for it: handing over costs about 10 ms
DEPTH_NS: Final = 50_000_000  # of the rate: the depth of a bucket that has none written down
ONE: Final = 10**15  # units in a token: 1 unit = a millionth token per second, for 1 ns. Whole numbers only: no drift
CHUNK_PARTS, CHUNK_MIN = 64, 16  # a reserve is a 64th of the limit: what a power loss costs at most

_MANY: Final = 1 << 62

assert REACH_NS <= LAPSE_NS


class RateLike(Protocol):
    """The limits of an owner; 0 = no such limit (`burst` None = 0). `broker.contract.settings.Rate` is one."""

    @property
    def per_second(self) -> float: ...
    @property
    def per_minute(self) -> int: ...
    @property
    def per_hour(self) -> int: ...
    @property
    def per_day(self) -> int: ...
    @property
    def burst(self) -> int | None: ...
    @property
    def wait_ms(self) -> float: ...
    @property
    def cooldown_ms(self) -> float: ...


class Bucket:
    """The rate law in whole units (ONE to a token).

    level  what is in the bucket at `at_ns`; negative while tokens are granted that do not exist yet
    """

    __slots__ = ("at_ns", "depth", "even_ns", "level", "next_ns", "speed")

    def __init__(self, per_second: float, burst: int | None, now_ns: int) -> None:
        self.at_ns = self.next_ns = now_ns
        self.level = 0
        self.set(per_second, burst, 0)

    def set(self, per_second: float, burst: int | None, outstanding: int) -> None:
        """Change speed and depth, as of `at_ns`.

        What is in it stays, up to the new depth. Tokens that are out were granted under the old limits: they may leave
        the bucket a debt of the reach at the new speed and no more, or a rate turned down would stop for minutes.
        """
        self.speed = max(1, int(per_second * 1_000_000))
        self.depth = burst * ONE if burst else max(ONE, self.speed * DEPTH_NS)
        self.level = max(min(self.level, self.depth - outstanding * ONE), -self.speed * REACH_NS)
        # Without a written burst tokens are handed out evenly: at most at twice the rate, to make up for a stall.
        self.even_ns = 0 if burst else ONE // (2 * self.speed)
        self.next_ns = min(self.next_ns, self.at_ns + REACH_NS)

    def refill(self, now_ns: int, outstanding: int) -> None:
        """Let the time up to `now_ns` flow in, `outstanding` having been out all the while."""
        if now_ns > self.at_ns:
            flowed = min(self.level + self.speed * (now_ns - self.at_ns), self.depth - outstanding * ONE)
            self.level = max(self.level, flowed)  # more can be out than fits, but only just after `set`
            self.at_ns = now_ns

    def give_back(self, n: int, outstanding: int) -> None:
        """Put tokens back that were out and are not any more; `outstanding` still are."""
        self.level = max(self.level, min(self.level + n * ONE, self.depth - outstanding * ONE))

    def room(self, until_ns: int, outstanding: int) -> int:
        """Return the tokens that exist by `until_ns`."""
        level = self.level + self.speed * max(0, until_ns - self.at_ns)
        return max(0, min(level, self.depth - outstanding * ONE) // ONE)

    def time_ns(self, k: int) -> int:
        """Return when the k-th token from now exists: `at_ns` or later."""
        return self.at_ns + max(0, -((self.level - k * ONE) // self.speed))


class Windows:
    """All limits of one owner.

    holder    the lease whose turn it is, if there is a gap; run_ns  since when
    bound     name of the limit that kept somebody waiting at the last tick, or None
    """

    __slots__ = ("_cool_ns", "_cooling", "_last_ns", "_limits", "_rate", "_start_ns", "_wait_ns", "bound", "bucket",
                 "file", "holder", "name", "run_ns")  # fmt: skip

    def __init__(self, name: str, rate: RateLike, file: WindowFile, now_ns: int) -> None:
        """Begin with a full bucket if the file is new, else with an empty one.

        After a power loss the minute starts as used up: nothing tells what was sent in it.
        """
        self.name = name
        self.file = file
        self.bucket: Bucket | None = None
        self.bound: str | None = None
        self.holder: Any = None
        self.run_ns = self._last_ns = now_ns
        self._cooling = False
        self._wait_ns = self._cool_ns = 0
        self._start_ns = now_ns
        self.set_rate(rate, now_ns)
        self._start_ns = now_ns
        self._begin(file.found, rate.per_minute, now_ns)

    def _begin(self, found: Found, per_minute: int, now_ns: int) -> None:
        if found is Found.NEW:
            if self.bucket is not None:
                self.bucket.level = self.bucket.depth
            return
        self._start_ns = now_ns + max(self._wait_ns, self._cool_ns)
        if found is Found.POWER_LOST:
            self.file.minute.advance(now_ns)
            self.file.minute.add(per_minute)

    def set_rate(self, rate: RateLike, now_ns: int) -> None:
        """Change the limits. A bucket that was not there before begins empty; counts remember what was granted."""
        out = self.file.outstanding
        if rate.per_second <= 0:
            self.bucket = None
        elif self.bucket is None:
            self.bucket = Bucket(rate.per_second, rate.burst, now_ns)
        else:
            self.bucket.refill(now_ns, out)
            self.bucket.set(rate.per_second, rate.burst, out)
        file = self.file
        limits = (("per_minute", rate.per_minute, file.minute), ("per_hour", rate.per_hour, file.hour),
                  ("per_day", rate.per_day, file.day))  # fmt: skip
        self._limits: list[tuple[str, int, Parts]] = [(f"rate.{key}", n, parts) for key, n, parts in limits if n > 0]
        long = [limit for name, limit, _ in self._limits if name != "rate.per_minute"]
        file.chunk = min(*long, max(CHUNK_MIN, min(long) // CHUNK_PARTS)) if long and file.lasting else 0
        had_gap = self.has_gap
        self._set_gap(rate)
        if self.has_gap and not had_gap:
            self._start_ns = now_ns + max(self._wait_ns, self._cool_ns)  # anybody may have attempted until now
        self._start_ns = min(self._start_ns, now_ns + REACH_NS + max(self._wait_ns, self._cool_ns))
        self._rate = rate

    def _set_gap(self, rate: RateLike) -> None:
        self._wait_ns = -int(-rate.wait_ms * 1_000_000 // 1)
        cool_ns = -int(-rate.cooldown_ms * 1_000_000 // 1)
        if self.bucket is None or cool_ns <= self._wait_ns:
            self._cool_ns = 0  # nothing to empty, or every attempt waits as long anyway
        elif self.bucket.depth < 2 * ONE:
            self._wait_ns, self._cool_ns = cool_ns, 0  # every attempt empties it
        else:
            self._cool_ns = cool_ns
        if not self._cool_ns:
            self._cooling = False
        if not self.has_gap:
            self.holder = None

    @property
    def has_gap(self) -> bool:
        """Return whether one lease at a time may be granted to."""
        return self._wait_ns > 0 or self._cool_ns > 0

    @property
    def gap_ns(self) -> int:
        """Return the least time between two attempts of one lease, 0 = none."""
        return self._wait_ns

    @property
    def limited(self) -> bool:
        """Return whether there is any window or gap."""
        return self.bucket is not None or bool(self._limits) or self.has_gap

    def settle(self, now_ns: int, spent: int, returned: int, last_ns: int) -> None:
        """Take in what became of tokens, heard of at `now_ns`; no attempt was dated later than `last_ns`.

        Gaps are kept from when the broker hears: an attempt is dated before its bytes are handed over.
        """
        out = self.file.outstanding
        if self.bucket is not None:
            # First the time in which they were out: what a full bucket could not take then is lost.
            self.bucket.refill(last_ns if spent else now_ns, out)
            self.bucket.give_back(returned, out - spent - returned)
        if spent:
            self._last_ns = now_ns
        self.file.settle(now_ns, spent, returned)
        if self._cooling and not self.file.outstanding:
            self._cooling = False
            self._start_ns = max(self._start_ns, self._last_ns + self._cool_ns)

    def refill(self, now_ns: int) -> None:
        """Come up to `now_ns`: before asking for room."""
        if self.bucket is not None:
            self.bucket.refill(now_ns, self.file.outstanding)
        for _, _, parts in self._limits:
            parts.advance(now_ns)

    def room(self, now_ns: int) -> tuple[int | None, str | None]:
        """Return how many tokens may be granted now, and the limit that says so; (None, None) without one.

        Needs `refill` at the same time. The dates of that many lie within the reach, for this owner alone.
        """
        out, until_ns = self.file.outstanding, now_ns + HORIZON_NS
        rooms = [(limit - parts.total - out, name) for name, limit, parts in self._limits]
        if self.file.chunk:
            rooms.append((self.file.reserve_left, self._limits[-1][0]))
        start_ns = max(now_ns, self._start_ns)
        if self._cool_ns:
            rooms.append((0 if self._cooling or start_ns > until_ns else _MANY, "rate.cooldown_ms"))
        if self.bucket is not None:
            exist_ns = min(start_ns, until_ns) if self._cool_ns else until_ns
            rooms.append((self.bucket.room(exist_ns, out), "rate.per_second"))
        if self._wait_ns:
            fit = 1 + (until_ns - start_ns) // self._wait_ns if start_ns <= until_ns else 0
            rooms.append((min(fit, 1 + HORIZON_NS // self._wait_ns - out), "rate.wait_ms"))
        if not rooms:
            return None, None
        least, name = min(rooms)
        return max(0, least), name

    def span_ns(self, n: int, now_ns: int) -> tuple[int, int]:
        """Return the earliest first and last time of the next n tokens; between them any even spacing is lawful.

        The k-th token exists at max(now, a line in k): a convex function, which a line above both its ends stays above.
        """
        first_ns = max(now_ns, self._start_ns) if self.has_gap else now_ns
        last_ns = first_ns
        if self.bucket is not None:
            first_ns = max(first_ns, self.bucket.next_ns, self.bucket.time_ns(1))
            last_ns = max(first_ns + (n - 1) * self.bucket.even_ns, self.bucket.time_ns(n))
        return first_ns, max(last_ns, first_ns + (n - 1) * self._wait_ns)

    def charge(self, n: int, last_ns: int) -> None:
        """Count n tokens, the last of them dated `last_ns`, as out. Before they are published."""
        self.file.grant(n)
        bucket = self.bucket
        if bucket is not None:
            bucket.level -= n * ONE
            bucket.next_ns = last_ns + bucket.even_ns if bucket.even_ns else bucket.next_ns
            left = min(
                bucket.level + bucket.speed * (last_ns - bucket.at_ns), bucket.depth - self.file.outstanding * ONE
            )
            self._cooling = self._cool_ns > 0 and left < ONE
        if self.has_gap:
            self._start_ns = last_ns + self._wait_ns

    def hand_over(self, now_ns: int, *, wanted: bool, others: bool) -> bool:
        """End the holder's turn if it is time, and return whether the turn is free to be taken.

        wanted  whether the holder wants more; others  whether somebody else does
        """
        if self.file.outstanding:
            return False
        if self.holder is not None and (not wanted or (others and self.run_over(now_ns))):
            self.holder = None
            self._start_ns = max(self._start_ns, self._last_ns + max(self._wait_ns, self._cool_ns))
        return self.holder is None

    def run_over(self, now_ns: int) -> bool:
        """Return whether the holder has had the turn long enough."""
        return now_ns - self.run_ns >= RUN_NS

    def binding(self, now_ns: int) -> dict[str, Any] | None:
        """Return {name, value, until_ns} of the limit that keeps somebody waiting, or None.

        until_ns  when it lets the next attempt through, if nothing is spent meanwhile
        """
        if self.bound is None:
            return None
        until_ns = now_ns
        if self.bound == "rate.per_second" and self.bucket is not None:
            until_ns = max(now_ns, self.bucket.time_ns(1))
        elif self.bound in ("rate.wait_ms", "rate.cooldown_ms"):
            until_ns = max(now_ns, self._start_ns)
        for name, limit, parts in self._limits:
            if name == self.bound:
                until_ns = max(now_ns, parts.below_ns(limit - 1 - self.file.outstanding))
        value = getattr(self._rate, self.bound.removeprefix("rate."))
        return {"name": self.bound, "value": value, "until_ns": until_ns}
