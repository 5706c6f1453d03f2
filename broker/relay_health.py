"""How a relay stands, and what is remembered of it: tripped, probed, up again; a mode stepped down for a while.

Pure: seconds of a monotonic clock come in with what all senders together saw since the last look; verdicts come out.
`broker/relay_watch.py` feeds it from shared memory and carries its verdicts to the senders.

Invariants
- A relay trips when for `DOWN_S` connections only fail, or when of its latest verdicts nearly all blame us. People are
  never charged for either: their attempts were deferred.
- A tripped relay gets no connection until its back-off is over, then one in all (PROBING): a success makes it UP, a
  failure trips it again for twice as long. One that stays up for `STEADY_S` begins anew.
- A relay that is merely away is knocked at often, since that costs nothing and a restart of it takes seconds; one that
  blames us is left alone for half a minute to a quarter of an hour, since knocking makes that worse.
- A mode that one sender had to step down from is avoided by all for `STEPPED_S`; then one sender tries the better one.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final, NamedTuple

from shm.live.relays import RelayState

__all__ = ["Cause", "Health", "Sight", "SteppedMode"]

DOWN_S: Final = 2.0  # no connection and only failures for this long
FORGET_S: Final = 30.0  # failures this far apart have nothing to do with each other; a sender pauses 23 s at most
WINDOW_S: Final = 5.0  # verdicts are judged over
VERDICTS: Final = 20  # at least, before a relay is judged by them; a slow campaign reaches them in a row
BLAME_SHARE: Final = 0.8
STEADY_S: Final = 60.0
QUIET_S: Final = 30.0  # a probe that is answered, but by words about people only, is a success after this long
STEPPED_S: Final = 600.0
TRIAL_S: Final = 10.0  # a better mode that holds this long is back

_MODES: Final = 3  # the best mode; stepped down to 0 = not at all


class Cause(Enum):
    """Why a relay tripped, with its first and its longest back-off in seconds."""

    AWAY = (2.0, 60.0)
    BLAMES = (30.0, 900.0)

    def pause_s(self, trips: int) -> float:
        """The back-off after the n-th trip in a row, from 1."""
        first, longest = self.value
        return float(min(first * 2.0 ** min(trips - 1, 30), longest))


class Sight(NamedTuple):
    """What all senders saw of a relay: `connections` open now, the others since the last look.

    failures, refusals   connections that could not be opened, or were greeted with "not now"
    accepted, blamed, throttled   messages taken, refused with words against us, refused as too fast
    """

    connections: int = 0
    failures: int = 0
    refusals: int = 0
    accepted: int = 0
    blamed: int = 0
    throttled: int = 0


class Health:
    """The state of one relay.

    until   when a tripped relay is probed;  trips   in a row
    """

    __slots__ = ("_failed_at", "_failing_since", "_streak", "_verdicts", "cause", "since", "state", "trips", "until")

    def __init__(self, now: float = 0.0) -> None:
        self.state = RelayState.UP
        self.cause = Cause.AWAY
        self.trips = 0
        self.until = 0.0
        self.since = now
        self._begin()

    def _begin(self) -> None:
        self._failing_since: float | None = None
        self._failed_at = 0.0
        self._streak = 0  # verdicts against us since the last message was taken
        self._verdicts: deque[tuple[float, int, int]] = deque()  # (when, good, bad)

    def restore(self, now: float, until: float, trips: int, cause: Cause) -> None:
        """Take up a trip of an earlier start: what is left of its back-off is kept."""
        self.state, self.cause, self.trips, self.until, self.since = RelayState.TRIPPED, cause, trips, until, now

    def look(self, now: float, sight: Sight) -> bool:
        """Take in what was seen; whether the state changed."""
        match self.state:
            case RelayState.UP:
                return self._up(now, sight)
            case RelayState.TRIPPED:
                return self._tripped(now, sight)
            case _:
                return self._probing(now, sight)

    def _up(self, now: float, sight: Sight) -> bool:
        if self.trips and now - self.since >= STEADY_S:
            self.trips = 0
        cause = self._away(now, sight) or self._against_us(now, sight)
        if cause is not None:
            self._trip(now, cause)
        return cause is not None

    def _away(self, now: float, sight: Sight) -> Cause | None:
        if sight.connections or sight.accepted:
            self._failing_since = None
        elif sight.failures or sight.refusals:
            if self._failing_since is None or now - self._failed_at > FORGET_S:
                self._failing_since = now
            self._failed_at = now
            if now - self._failing_since >= DOWN_S:
                return Cause.AWAY
        return None

    def _against_us(self, now: float, sight: Sight) -> Cause | None:
        bad = sight.blamed + sight.throttled
        self._streak = 0 if sight.accepted else self._streak + bad
        verdicts = self._verdicts
        if bad or sight.accepted:
            verdicts.append((now, sight.accepted, bad))
        while verdicts and now - verdicts[0][0] > WINDOW_S:
            verdicts.popleft()
        good_sum, bad_sum = sum(good for _, good, _ in verdicts), sum(bad for _, _, bad in verdicts)
        many = good_sum + bad_sum >= VERDICTS and bad_sum >= BLAME_SHARE * (good_sum + bad_sum)
        return Cause.BLAMES if bad and (many or self._streak >= VERDICTS) else None

    def _tripped(self, now: float, sight: Sight) -> bool:
        if self.cause is Cause.AWAY and sight.connections:  # one that was on its way when it tripped
            self._to(now, RelayState.UP)
            return True
        if now >= self.until:
            self._to(now, RelayState.PROBING)
            return True
        return False

    def _probing(self, now: float, sight: Sight) -> bool:
        good, bad = sight.accepted, sight.blamed + sight.throttled
        if bad and bad >= BLAME_SHARE * (good + bad):
            self._trip(now, Cause.BLAMES)
            return True
        if not sight.connections and not good and (sight.failures or sight.refusals):
            self._trip(now, Cause.AWAY)
            return True
        answered = sight.connections and (self.cause is Cause.AWAY or now - self.since >= QUIET_S)
        if good or answered:
            self._to(now, RelayState.UP)
            return True
        return False

    def _trip(self, now: float, cause: Cause) -> None:
        self.trips = self.trips + 1 if cause is self.cause else 1
        self.cause = cause
        self.until = now + cause.pause_s(self.trips)
        self._to(now, RelayState.TRIPPED)

    def _to(self, now: float, state: RelayState) -> None:
        self.state, self.since = state, now
        self._begin()


class SteppedMode:
    """The mode that a relay was stepped down to, if it was lately.

    mode    all may use at most this one, 0 = any;  until   when a better one is tried
    trial   one sender tries a better one now
    """

    __slots__ = ("_held_since", "_trial_since", "mode", "trial", "until")

    def __init__(self) -> None:
        self.mode = 0
        self.until = 0.0
        self.trial = False
        self._trial_since = 0.0
        self._held_since: float | None = None

    def restore(self, mode: int, until: float) -> None:
        """Take up what an earlier start learnt."""
        self.mode, self.until, self.trial = mode, until, False

    def step(self, now: float, mode: int) -> bool:
        """A sender had to step down to `mode`; whether that says anything new."""
        mode = min(self.mode or _MODES, mode)
        new = mode != self.mode or self.trial
        self.mode, self.until, self.trial = mode, now + STEPPED_S, False
        return new

    def look(self, now: float, mode: int, stepped: int) -> bool:
        """Begin and judge a trial; whether something changed.

        mode, stepped   words of the sender that tries: the mode it speaks now, and the one it stepped down to
        """
        if not self.mode or now < self.until:
            return False
        if not self.trial:
            self.trial, self._trial_since, self._held_since = True, now, None
            return True
        if stepped and now - self._trial_since >= TRIAL_S:  # it never let go of what it learnt itself: later
            self.trial, self.until = False, now + STEPPED_S
            return True
        if mode <= self.mode or stepped:
            self._held_since = None
            return False
        if self._held_since is None:
            self._held_since = now
        if now - self._held_since < TRIAL_S:
            return False
        self.mode, self.until, self.trial = 0, 0.0, False
        return True

    def ceiling(self, *, tries: bool) -> int:
        """The highest mode for a sender, 0 = any. `tries`: whether it is the one that makes trials."""
        return 0 if self.trial and tries else self.mode
