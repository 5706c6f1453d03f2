"""How many messages may be in flight on one connection (W), for the relays that take windows (BDAT).

Pure, like `growth`: what was seen goes in, a number comes out.

- From 1, doubling while the relay takes what it is given, up to the ceiling; that takes a few round trips.
- A doubling that made replies later and brought nothing is taken back, and tried again after a while.
- Trouble (421, replies that throttle or blame us, silence) halves it at once; from there it grows by 1 a second.
- It moves before the number of connections does: a message more in flight costs the relay less than a connection.
"""

from __future__ import annotations

from typing import Final

from actors.sender.throughput import Sample, Sampler, Sight

__all__ = ["Window"]

LATER: Final = 1.5  # replies that come by this factor later ...
LATER_S: Final = 0.05  # ... and by so much, without
MORE: Final = 1.1  # so much more throughput: the relay queues what we send, and no more
AGAIN_S: Final = 60.0
RECOVER_S: Final = 1.0


class Window:
    """The controller of one sender's pool. `size` is W now; `moving`: it is about to change, judge nothing else."""

    def __init__(self) -> None:
        self._sampler = Sampler()
        self._trouble = 0
        self.restart()

    def restart(self) -> None:
        """From 1 again."""
        self.size = 1
        self.moving = False
        self._base: Sample | None = None
        self._connections = 0
        self._not_before_s = 0.0
        self._additive = False
        self._sampler.restart()

    def step(self, sight: Sight, ceiling: int) -> int:
        """Take one more look; returns `size`.

        ceiling  most allowed; 1 as long as it is not certain that the relay takes windows
        """
        trouble = sight.refused + sight.slowed
        troubled, self._trouble = trouble != self._trouble, trouble
        now_s = sight.now_s
        if troubled:
            self._shrink(max(self.size // 2, 1), now_s + RECOVER_S)
            self._additive = True
        elif self.size > ceiling:
            self._shrink(max(ceiling, 1), now_s)
        self.moving = self.size < ceiling and now_s >= self._not_before_s and not self._additive
        if self._additive:
            if now_s >= self._not_before_s:
                self.size = min(self.size + 1, max(ceiling, 1))
                self._not_before_s = now_s + RECOVER_S
                self._additive = self.size < ceiling
            return self.size
        if sight.open and ceiling > 1:
            self._measure(sight, ceiling)
        return self.size

    def _measure(self, sight: Sight, ceiling: int) -> None:
        if sight.open != self._connections:  # another number of connections cannot be compared
            self._connections = sight.open
            self._base = None
            self._sampler.restart()
        sample = self._sampler.look(
            sight._replace(window=self.size), sight.open, fine=not self.moving, settle_s=min(sight.latency_s, 2.0)
        )
        if sample is None:
            return
        base, self._base = self._base, sample
        if base is not None and _only_later(base, sample):
            self._shrink(max(self.size // 2, 1), sight.now_s + AGAIN_S)
            self._base = None
        elif self.moving:
            self.size = min(2 * self.size, ceiling)

    def _shrink(self, size: int, not_before_s: float) -> None:
        self.size = size
        self._not_before_s = not_before_s
        self.moving = False
        self._base = None
        self._sampler.restart()


def _only_later(base: Sample, sample: Sample) -> bool:
    late_s = sample.latency_s - base.latency_s
    return sample.latency_s > LATER * base.latency_s and late_s > LATER_S and sample.rate < MORE * base.rate
