"""How many connections there should be to one relay: tried, measured, kept or taken back.

Pure: what was seen goes in, a number comes out. No clock, no socket, no loop. One sender measures for all senders of an
engine (`steering`), but another engine may share the relay and run the same code, and nobody tells either what the
other does; so everything here is relative and repeated.

- One knob is turned at a time, and what it brought is measured before it is turned again.
- A handful (FIRST) is had without asking, since a short look tells little, and given up only for more throughput.
  From there on more connections must pay: throughput has to grow by (connections)^PAYS at least, and fewer are kept if
  they cost less than that.  Where two engines crowd a relay together, that is what makes both give way: one that backs
  off alone loses nothing at first, and the one that has fewer gains more by growing, so they meet in the middle.
- What the relay refuses is believed at once; then the way up is a small step at a time, with pauses that double as long
  as it goes on refusing.
- Without demand nothing is measured (`throughput`), and nothing grows.
- Never more than the allowance.

Life: START doubles from one connection, to FIRST and on while it pays.  SEARCH tries steps up and down from the best,
ever finer.  REST keeps the best, tries a step to each side now and then, and searches anew if throughput changes by
itself.
"""

from __future__ import annotations

import math
import random
from enum import Enum
from typing import Final

from actors.sender.throughput import Sample, Sampler, Sight

__all__ = ["Growth"]

PAYS: Final = 0.08
CLEARLY: Final = 0.6  # as PAYS, without asking twice
DOUBT: Final = 0.5  # more must beat this share of the error that counting so few messages may make
DISASTER: Final = 0.4  # share of throughput lost that needs no second look
STEPS: Final = (1.5, 1.2, 1.1)  # of a search, ever finer
REST_S: Final = 6.0  # between two probes; half as long again after each that changed nothing, up to REST_S_MAX
REST_S_MAX: Final = 30.0
STRANGE: Final = 0.25  # a change of throughput by this share without our doing calls for a new search
PAUSE_S: Final = 10.0  # after a refused connection, before more are tried
SLOWED_PAUSE_S: Final = 1.0  # after replies that slow us down
PAUSE_S_MAX: Final = 300.0
FIRST: Final = 32  # what any relay takes, and enough for a near one to answer several at a time: fewer must gain ...
GAIN: Final = 0.0  # ... this share
UNLIMITED: Final = 1 << 30


class Phase(Enum):
    """See the head of this file."""

    START = "start"
    SEARCH = "search"
    REST = "rest"


def _error(base: Sample, trial: Sample) -> float:
    """What counting so few messages may be off, as a share."""
    return math.sqrt(1 / max(base.messages, 1) + 1 / max(trial.messages, 1))


def _waves(base: Sample, trial: Sample) -> float:
    """What it may be off because connections opened together are answered together: a wave more or less, as a share."""
    return 0.25 * sum(sample.latency_s / sample.seconds for sample in (base, trial))


def surplus(base: Sample, trial: Sample, share: float = PAYS) -> float:
    """How much more it brought, as a logarithm, than what it must: more for enough more, or fewer for little less."""
    if trial.connections < min(base.connections, FIRST):
        return math.log(trial.rate / base.rate) - GAIN
    connections = math.log(trial.connections / base.connections)
    doubt = min(DOUBT * _error(base, trial), 0.1) if connections > 0 else 0.0
    return math.log(trial.rate / base.rate) - share * connections - doubt


def _clear(base: Sample, trial: Sample) -> bool:
    """Whether it need not be asked twice: nearly in proportion to the connections, or as much with fewer."""
    if trial.connections < min(base.connections, FIRST):
        return surplus(base, trial) >= GAIN  # twice what it must
    return surplus(base, trial, CLEARLY if trial.connections > base.connections else 0.0) >= 0


def _decided(base: Sample, trial: Sample) -> bool:
    """Whether an unfinished sample says already what a finished one would."""
    return abs(surplus(base, trial)) > 0.1 + 2 * _error(base, trial)


def _stepped(connections: int, direction: int, step: float, least: int, most: int) -> int:
    """A step up (1) or down (-1), at least 1, within least..most."""
    if direction > 0:
        return min(max(connections + 1, round(connections * step)), max(most, least))
    return max(min(connections - 1, round(connections / step)), least)


class Growth:
    """The controller of one pool. `target` is what it wants to be open now."""

    def __init__(self, dice: random.Random) -> None:
        """dice: so that two engines do not try the same at the same time."""
        self._dice = dice
        self._sampler = Sampler()
        self._refused = self._slowed = 0
        self.restart()

    def restart(self) -> None:
        """From one connection again: every one was lost, or nothing is known any more."""
        self.target = 1
        self._phase = Phase.START
        self._base: Sample | None = None
        self._best: Sample | None = None  # of START
        self._trial = False
        self._rest_s = REST_S
        self._rest_until_s = 0.0
        self._strange = 0  # samples in a row that contradict the base
        self._side = 1
        self._cap = UNLIMITED
        self._cap_until_s = 0.0
        self._pause_s = PAUSE_S
        self._recovering_to = 0
        self._cut_s = -PAUSE_S_MAX
        self._least, self._limit = 1, UNLIMITED
        self._begin_search()
        self._sampler.restart()

    def adopt(self, connections: int) -> None:
        """Go on from what another found; from one connection, as ever, if that is what there is."""
        if connections > 1 and connections != self.target:
            self._recovering_to = 0
            self._settle(connections)

    def disturbed(self) -> None:
        """Something else changed than the connections: what is being measured says nothing."""
        self._sampler.restart()

    def step(self, sight: Sight) -> int:
        """Take one more look at the relay, every few hundredths of a second; returns `target`."""
        self._heed(sight)
        self._raise_cap(sight.now_s)
        self._least = sight.least
        limit = max(min(sight.allowance, self._cap), self._least)
        if self.target < self._least:
            self._rise(self._least)
        elif limit < self.target:
            self._settle(limit)
        elif limit > 2 * self._limit and self.target == self._limit and not self._recovering_to:
            self._phase, self._best = Phase.START, None  # it was the allowance that held us
        self._limit = limit
        if not self._recovering_to:
            sample = self._measured(sight)
            if sample is not None:
                self._judge(sample, sight.now_s)
        return self.target

    def _rise(self, connections: int) -> None:
        """There are more than was thought best."""
        if self._phase is Phase.START:
            self.target = connections
            self._base = None
            self._sampler.restart()
        else:
            self._settle(connections)

    def _measured(self, sight: Sight) -> Sample | None:
        """A finished sample, or one of a trial that is decided before."""
        fine = self._phase is not Phase.START
        base = self._base
        latency_s = sight.latency_s if base is None else base.latency_s  # with too many it would only be longer
        sample = self._sampler.look(sight, self.target, fine=fine, settle_s=min(latency_s, 2.0))
        if sample is None and base is not None and self.target != base.connections:
            sample = self._sampler.so_far(sight, self.target, fine=fine, latency_s=min(latency_s, 1.5))
            if sample is None or not _decided(base, sample):
                return None
            self._sampler.restart()
        return sample

    # What the relay refuses.

    def _heed(self, sight: Sight) -> None:
        refused, slowed = sight.refused - self._refused, sight.slowed - self._slowed
        self._refused, self._slowed = sight.refused, sight.slowed
        now_s = sight.now_s
        if slowed > 0 and now_s - self._cut_s > max(1.0, 2 * sight.latency_s):
            self._cut_s = now_s
            whole = max(self._recovering_to, min(self.target, max(sight.open, 1)))
            self._cut(max(whole // 2, 1), now_s, SLOWED_PAUSE_S)
            self._recovering_to = whole
        elif refused > 0 and not sight.open:
            self.restart()
        elif refused > 0 and sight.open < self.target:
            again = sight.open + 1 >= self._cap and now_s - self._cut_s < 4 * self._pause_s
            self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX) if again else PAUSE_S
            self._cut_s = now_s
            self._cut(max(sight.open, 1), now_s, self._pause_s)

    def _cut(self, connections: int, now_s: float, pause_s: float) -> None:
        self._cap = connections
        self._cap_until_s = now_s + pause_s * self._dice.uniform(0.75, 1.25)
        if connections < self.target:
            self._settle(connections)

    def _raise_cap(self, now_s: float) -> None:
        """Step by step after a pause, if it is what holds us; each step that is not refused shortens the next pause."""
        if now_s < self._cap_until_s or self._cap > self.target or self._cap == UNLIMITED:
            return
        self._cap += max(1, self._cap // 16)
        if self._recovering_to:
            self._cap_until_s = now_s + SLOWED_PAUSE_S
            self.target = min(self._cap, self._recovering_to)
            if self.target == self._recovering_to:
                self._recovering_to = 0
                self._settle(self.target)
            return
        self._cap_until_s = now_s + self._pause_s * self._dice.uniform(0.75, 1.25)
        self._pause_s = max(self._pause_s / 2, 1.0)
        if self._phase is Phase.REST:
            self._rest_until_s = now_s

    def _settle(self, connections: int, direction: int = 0) -> None:
        """Keep this many from now on; what is best around it is to be found anew."""
        self._strange = 0
        self.target = connections
        self._base = None
        self._trial = False
        self._phase = Phase.SEARCH
        self._begin_search(direction=direction)
        self._sampler.restart()

    # What measuring says.

    def _judge(self, sample: Sample, now_s: float) -> None:
        match self._phase:
            case Phase.START:
                self._start(sample)
            case Phase.SEARCH:
                self._search(sample, now_s)
            case Phase.REST:
                self._look_around(sample, now_s)

    def _start(self, sample: Sample) -> None:
        """A first look at twice as many; up to FIRST it must be a disaster to be believed."""
        base, best = self._base, self._best
        if best is None or sample.rate > best.rate:
            self._best = best = sample
        if sample.rate < (1 - DISASTER) * best.rate:
            self._settle(best.connections)
            return
        judged = base is not None and sample.connections > max(base.connections, FIRST)
        if base is not None and judged and surplus(base, sample) < -_waves(base, sample):
            self._settle(base.connections)
            return
        self._base = sample
        self.target = min(2 * sample.connections, self._limit)
        if self.target == sample.connections:
            self._settle(self.target)

    def _begin_search(self, step: int = 0, direction: int = 0) -> None:
        self._step = step
        self._streak = 0
        self._tried: set[int] = set()
        self._maybe: Sample | None = None
        self._probing = False
        first = direction or (1 if self._dice.random() < 0.5 else -1)
        self._directions = [first, -first]

    def _search(self, sample: Sample, now_s: float) -> None:
        """A sample of the best so far, or of a trial beside it."""
        base, maybe = self._base, self._maybe
        self._maybe = None
        if base is None:
            self._base = sample
        elif maybe is not None:  # the best again, after a trial that looked good
            again = base._replace(messages=base.messages + sample.messages, seconds=base.seconds + sample.seconds)
            if surplus(again, maybe) >= 0:
                self._accept(maybe, base)
            else:
                self._base = sample
                self._reject(maybe)
        elif not self._trial:  # the best again, after a trial that failed
            if self._changed(base, sample):
                return
            if not self._strange:
                self._base = sample
        elif surplus(base, sample) < 0:
            self._reject(sample)
            self.target = base.connections  # measured again before anything else is tried
            self._trial = False
            return
        elif not _clear(base, sample):
            self._maybe = sample
            self.target = base.connections
            self._trial = False
            return
        else:
            self._accept(sample, base)
            if sample.connections > base.connections and self._step == 0:
                self._phase, self._best = Phase.START, None
                self._start(sample)
                return
        self._trial = self._propose()
        if not self._trial:
            self._rest(now_s)

    def _accept(self, trial: Sample, base: Sample) -> None:
        self._base = trial
        self._streak += 1
        self._rest_s = REST_S
        self._tried = {base.connections}
        self._directions = [1 if trial.connections > base.connections else -1]
        self._probing = False
        self._strange = 0
        if self._streak >= 2:
            self._step = 0

    def _reject(self, trial: Sample) -> None:
        self._tried.add(trial.connections)
        self._streak = 0
        self._directions.pop(0)

    def _propose(self) -> bool:
        """Set the target to something worth trying next to the best; whether there is anything left."""
        assert self._base is not None
        best = self._base.connections
        while True:
            while self._directions:
                step = STEPS[self._step]
                self.target = _stepped(best, self._directions[0], step, self._least, self._limit)
                if self.target != best and self.target not in self._tried:
                    return True
                self._directions.pop(0)
            if self._probing or self._step + 1 >= len(STEPS):
                self.target = best
                return False
            self._step += 1
            self._streak = 0
            self._directions = [1, -1] if self._dice.random() < 0.5 else [-1, 1]

    def _rest(self, now_s: float) -> None:
        self._phase = Phase.REST
        self._rest_until_s = now_s + self._rest_s * self._dice.uniform(0.7, 1.3)
        self._rest_s = min(1.5 * self._rest_s, REST_S_MAX)

    def _look_around(self, sample: Sample, now_s: float) -> None:
        """At rest: is it as it was? And is it time for a probe?"""
        base = self._base
        if base is None or base.connections != sample.connections:
            self._base = base = sample
        if self._changed(base, sample) or self._strange or now_s < self._rest_until_s:
            return
        self._phase = Phase.SEARCH
        self._begin_search(step=1)
        self._side = -self._side
        self._directions = [self._side]
        self._probing = True
        self._base = sample
        self._trial = self._propose()
        if not self._trial:
            self._rest(now_s)

    def _changed(self, base: Sample, sample: Sample) -> bool:
        """Whether the same connections twice bring something else than they did; then all is to be found anew."""
        self._strange = self._strange + 1 if abs(math.log(sample.rate / base.rate)) > STRANGE else 0
        if self._strange < 2:
            return False
        self._settle(self.target, -1 if sample.rate < base.rate else 1)
        self._rest_s = REST_S
        return True
