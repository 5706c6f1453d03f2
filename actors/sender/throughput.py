"""What a sender sees of a relay, and how throughput is measured from it.

Pure: the time comes in with each look.

- A sample counts only if rows waited for connections nearly all the time: otherwise it shows demand, not the relay.
- Nothing is measured while what is measured changes: connections still coming, or another window.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["Sample", "Sampler", "Sight"]

REACH_S: Final = 3.0  # how long a number of connections may take to come about before it is judged as it is
SHORT_S: Final = 0.0125  # a connection: how long a first look takes at least; the more are open, the more is at stake
FEW: Final = 4  # messages say nothing ...
FEW_S: Final = 10.0  # ... unless they are all that came in so long
BUSY: Final = 0.8  # share of the time that rows must have waited for connections


class Sight(NamedTuple):
    """What a sender sees of one relay at one moment. Counts only ever grow.

    now_s      monotonic time
    open       connections open
    done       messages concluded
    latency_s  of late, MAIL to final reply; 0 = not known
    crowded    rows wait and no connection is free
    refused    connections refused or ended by the relay's own wish (connect errors, 421)
    slowed     times the relay blamed or throttled us in numbers, or fell silent
    allowance  most connections
    least      connections there are in any case: each sender that has need keeps one
    window     messages in flight a connection: another knob, which may not move while this one is judged
    """

    now_s: float
    open: int
    done: int
    latency_s: float
    crowded: bool
    refused: int
    slowed: int
    allowance: int
    window: int
    least: int = 1


class Sample(NamedTuple):
    """Throughput at a number of connections: `messages` concluded in `seconds`, and how late their replies came."""

    connections: int
    messages: int
    seconds: float
    latency_s: float

    @property
    def rate(self) -> float:
        """Messages a second; never 0, so that it has a logarithm."""
        return max(self.messages, 0.5) / self.seconds


class Sampler:
    """Measures throughput once the connections asked for are there, for as long as the relay's pace makes needful."""

    def __init__(self) -> None:
        self._window = 0
        self.restart()

    def restart(self) -> None:
        """What was measured so far says nothing any more."""
        self._asked_s = self._there_s = self._from_s = -1.0
        self._last_s = 0.0
        self._done = 0
        self._busy_s = 0.0
        self._latencies_s = 0.0
        self._looks = 0

    def look(self, sight: Sight, wanted: int, *, fine: bool, settle_s: float) -> Sample | None:
        """Take one more look; a sample of `wanted` connections once there is enough of it.

        fine      enough to tell a tenth more from a tenth less; otherwise only a half
        settle_s  how long to let the connections work before they are measured
        """
        now_s = sight.now_s
        if sight.window != self._window:
            self._window = sight.window
            self.restart()
        if self._asked_s < 0:
            self._asked_s = now_s
        if self._there_s < 0:
            there = abs(sight.open - wanted) * 8 <= wanted
            if sight.open and (there or now_s > self._asked_s + REACH_S):
                self._there_s = now_s
        elif self._from_s < 0:
            if sight.latency_s and now_s >= self._there_s + max(settle_s, 0.05):
                self._from_s = self._last_s = now_s
                self._done = sight.done
        else:
            self._busy_s += now_s - self._last_s if sight.crowded else 0.0
            self._last_s = now_s
            self._latencies_s += sight.latency_s
            self._looks += 1
            return self._finished(sight, wanted, fine=fine)
        return None

    def _finished(self, sight: Sight, wanted: int, *, fine: bool) -> Sample | None:
        seconds = sight.now_s - self._from_s
        count = sight.done - self._done
        latency_s = self._latencies_s / self._looks
        least_s = min(max(1.5, 4 * latency_s), 4.0) if fine else min(max(SHORT_S * wanted, 3 * latency_s), 4.0)
        least = max(150, 2 * wanted) if fine else max(5, wanted)
        if seconds < least_s or (count < least and seconds < max(3 * least_s, 2.0)):
            return None
        if count < FEW and seconds < FEW_S:
            return None
        busy = self._busy_s >= BUSY * seconds
        self.restart()
        return Sample(wanted, count, seconds, latency_s) if busy else None

    def so_far(self, sight: Sight, wanted: int, *, fine: bool, latency_s: float) -> Sample | None:
        """What there is of an unfinished sample, if it may say something already.

        latency_s  of a relay that is not crowded: before so long nobody has answered
        """
        seconds = sight.now_s - self._from_s
        if self._from_s < 0 or seconds < max(0.7 if fine else 0.3, 2 * latency_s) or self._busy_s < BUSY * seconds:
            return None
        return Sample(wanted, sight.done - self._done, seconds, self._latencies_s / max(self._looks, 1))
