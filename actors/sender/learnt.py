"""What a pool has learnt of its relay's habits: after how many messages it closes, how many refusals it bears, and
which mode it breaks.

Pure: times come in. What is learnt lapses, since relays are changed.
"""

from __future__ import annotations

from typing import Final

from actors.smtp.transaction import Mode

__all__ = ["CloseCount", "ModeMemory", "Patience"]

SECOND_NS: Final = 1_000_000_000
SIGHTING_NS: Final = 5 * SECOND_NS  # closings within this have one cause, the relay's restart say, whatever their count
ONCE_NS: Final = 60 * SECOND_NS  # how long one closing is taken for a habit
HABIT_NS: Final = 3600 * SECOND_NS  # and two at the same count
REFUSED_MAX: Final = 5  # refused recipients a connection, as long as nothing is known of the relay's patience
PATIENT: Final = 30  # a relay that bore so many bears any number
IMPATIENT_NS: Final = 600 * SECOND_NS
STEPPED_DOWN_NS: Final = 600 * SECOND_NS  # how long a mode that misbehaved is avoided


class CloseCount:
    """After how many messages the relay closes a connection: the smallest count seen.

    A relay that closes so is normal; we only have to leave before it does, with nothing in flight.  One that closed
    for another reason, a restart say, must not bind us for long: a count is believed for a minute, and for an hour
    once the relay has closed twice at the same. Connections that it closes together are one closing.
    """

    def __init__(self) -> None:
        self._count = self._last = 0
        self._seen_ns = self._until_ns = 0
        self._habit = False

    def habit(self, now_ns: int) -> int:
        """The count, if it is a habit of the relay's; 0 = none that is known."""
        return self.now(now_ns) if self._habit else 0

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
        if self._last and now_ns - self._seen_ns < SIGHTING_NS:
            count = min(count, self._last)
            self._habit = self._habit and count == self._last
        else:
            self._habit = count == self._last
            self._seen_ns = now_ns
        self._until_ns = max(self._until_ns if known else 0, now_ns + (HABIT_NS if self._habit else ONCE_NS))
        self._count = self._last = count


class Patience:
    """How many refused recipients the relay bears on a connection.

    Exim counts the RSET behind each and hangs up at the eleventh, without a word. In a window that would leave what
    stands behind it in doubt; where a body leaves only when it is asked for it costs nothing. So until it is known
    that the relay is patient, a connection with `most` refusals goes on without windows, and proves it.
    """

    def __init__(self) -> None:
        self._patient = False
        self._bears = 0
        self._until_ns = 0

    def most(self, now_ns: int) -> int | None:
        """Refusals after which a connection may carry no window any more; None = no limit."""
        if self._patient:
            return None
        return self._bears if self.impatient(now_ns) else REFUSED_MAX

    def impatient(self, now_ns: int) -> bool:
        """Whether it is known that the relay hangs up."""
        return bool(self._bears) and now_ns <= self._until_ns

    def bore(self, count: int) -> bool:
        """A connection stands after `count` refusals; whether that is patience enough for any number."""
        self._patient = self._patient or count >= PATIENT
        return self._patient

    def hung_up(self, count: int, now_ns: int) -> None:
        """The relay closed a connection right behind its refusal number `count`."""
        if not self._patient:
            self._bears, self._until_ns = max(count // 2, 1), now_ns + IMPATIENT_NS
        self._patient = False


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
