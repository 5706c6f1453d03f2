"""What a pool has learnt of its relay's habits: after how many messages it closes, and which mode it breaks.

Pure: times come in. What is learnt lapses, since relays are changed.
"""

from __future__ import annotations

from typing import Final

from actors.smtp.transaction import Mode

__all__ = ["CloseCount", "ModeMemory"]

SECOND_NS: Final = 1_000_000_000
ONCE_NS: Final = 60 * SECOND_NS  # how long one closing is taken for a habit
HABIT_NS: Final = 3600 * SECOND_NS  # and two at the same count
STEPPED_DOWN_NS: Final = 600 * SECOND_NS  # how long a mode that misbehaved is avoided


class CloseCount:
    """After how many messages the relay closes a connection: the smallest count seen.

    A relay that closes so is normal; we only have to leave before it does, with nothing in flight.  One that closed
    for another reason, a restart say, must not bind us for long: a count is believed for a minute, and for an hour
    once the relay has closed twice at the same.
    """

    def __init__(self) -> None:
        self._count = self._last = 0
        self._until_ns = 0

    def now(self, now_ns: int) -> int:
        """The count to keep to; 0 = none."""
        if self._count and now_ns > self._until_ns:
            self._count = 0
        return self._count

    def closed(self, count: int, now_ns: int) -> None:
        """The relay closed a connection in use after it had judged `count` messages (at least 1)."""
        known = self.now(now_ns)
        if known and count > known:
            return
        self._until_ns = now_ns + (HABIT_NS if count == self._last else ONCE_NS)
        self._count = self._last = count


class ModeMemory:
    """The best mode the relay did not break lately."""

    def __init__(self) -> None:
        self._ceiling = Mode.BDAT
        self._until_ns = 0

    def ceiling(self, now_ns: int) -> Mode:
        """The best mode to speak now."""
        if now_ns > self._until_ns:
            self._ceiling = Mode.BDAT
        return self._ceiling

    def stepped(self, now_ns: int) -> Mode | None:
        """The mode it was stepped down to; None if it was not, or long ago."""
        ceiling = self.ceiling(now_ns)
        return None if ceiling is Mode.BDAT else ceiling

    def misbehaved(self, mode: Mode, now_ns: int) -> bool:
        """A connection in `mode` lost step; whether that is news.

        Several connections break together, and each message in flight says so: it is one step all the same.
        """
        if mode > self.ceiling(now_ns) or mode is Mode.LOCKSTEP:
            return False
        self._ceiling = Mode(mode - 1)
        self._until_ns = now_ns + STEPPED_DOWN_NS
        return True
