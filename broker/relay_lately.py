"""What relays said in the last minutes: the evidence on which `campaign why` blames one.

Pure: seconds of a monotonic clock come in with what was seen since the last look. Invariant: what is older than SPAN_S
speaks against nobody, and memory is bounded by the number of spans.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from broker.relay_health import Sight

__all__ = ["SPAN_S", "Lately", "Said"]

SPAN_S: Final = 180.0
_STEP_S: Final = 10.0


class Said(NamedTuple):
    """Messages taken, refused with words against us, refused as too fast."""

    accepted: int = 0
    blamed: int = 0
    throttled: int = 0


class Lately:
    """Of one relay, all senders together."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, Said]] = deque()  # (when it began, what was said in it), oldest first

    def look(self, now: float, sight: Sight) -> None:
        """Take in what was seen since the last look."""
        heard = (sight.accepted, sight.blamed, sight.throttled)
        if not any(heard):
            return
        if not self._steps or now - self._steps[-1][0] >= _STEP_S:
            self._steps.append((now, Said()))
        began, said = self._steps[-1]
        self._steps[-1] = began, Said(*map(sum, zip(said, heard, strict=True)))
        self._drop(now)

    def said(self, now: float) -> Said:
        """The sum over the last minutes."""
        self._drop(now)
        return Said(*map(sum, zip(*(said for _, said in self._steps), strict=True))) if self._steps else Said()

    def _drop(self, now: float) -> None:
        while self._steps and now - self._steps[0][0] > SPAN_S:
            self._steps.popleft()
