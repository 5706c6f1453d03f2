"""How many messages may be in flight on a connection (actors/sender/window.py), and what is learnt of a relay."""

from __future__ import annotations

from collections.abc import Callable

from actors.sender.learnt import HABIT_NS, ONCE_NS, STEPPED_DOWN_NS, CloseCount, ModeMemory
from actors.sender.throughput import Sight
from actors.sender.window import Window
from actors.smtp.transaction import Mode

TICK_S = 0.025


class Relay:
    """One connection to a relay in simulated time; rate(window) messages a second."""

    def __init__(self, rate: Callable[[int], float], ceiling: int = 16) -> None:
        self.window, self.rate, self.ceiling = Window(), rate, ceiling
        self.now_s = self.done = 0.0
        self.slowed = 0

    def run(self, seconds: float) -> list[int]:
        """The sizes it went through."""
        sizes = []
        for _ in range(round(seconds / TICK_S)):
            rate = self.rate(self.window.size)
            self.now_s += TICK_S
            self.done += rate * TICK_S
            sight = Sight(self.now_s, 1, int(self.done), self.window.size / rate, True, 0, self.slowed, 100, 1)
            sizes.append(self.window.step(sight, self.ceiling))
        return sizes


def test_a_far_relay_gets_the_whole_window_within_two_seconds() -> None:
    """50 ms away, a window brings as many times more: doubling to the ceiling."""
    sizes = Relay(lambda w: 20.0 * w).run(3)
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert sizes[-1] == 16


def test_a_window_that_only_makes_replies_later_is_taken_back() -> None:
    """Ten messages a second, whatever is in flight: 1 it stays but for a try a minute."""
    relay = Relay(lambda _: 10.0)
    sizes = relay.run(50)
    assert max(sizes) <= 2
    assert sizes[-1] == 1


def test_a_near_relay_that_is_full_keeps_its_window() -> None:
    """Later by less than anybody minds is no reason to write oftener."""
    assert Relay(lambda _: 5000.0).run(3)[-1] == 16


def test_trouble_halves_the_window_and_it_grows_by_one_a_second() -> None:
    """16, 8, then additively back."""
    relay = Relay(lambda w: 20.0 * w)
    relay.run(3)
    relay.slowed = 1
    assert relay.run(TICK_S) == [8]
    assert 9 <= relay.run(3.2)[-1] <= 12
    assert relay.run(12)[-1] == 16


def test_the_ceiling_holds_at_once() -> None:
    """The broker lowers it, or BDAT is no longer certain."""
    relay = Relay(lambda w: 20.0 * w)
    relay.run(3)
    relay.ceiling = 4
    assert relay.run(TICK_S) == [4]
    relay.ceiling = 1
    assert relay.run(1)[-1] == 1


def test_one_closing_is_believed_for_a_minute_and_a_habit_for_an_hour() -> None:
    """The smallest count holds; the same count twice is a habit."""
    closes = CloseCount()
    assert closes.now(0) == 0
    closes.closed(30, 1)
    closes.closed(10, 2)
    closes.closed(20, 3)
    assert closes.now(4) == 10
    assert closes.now(ONCE_NS + 3) == 0
    assert closes.habit(4) == 0
    closes.closed(10, ONCE_NS + 4)
    assert closes.now(HABIT_NS) == closes.habit(HABIT_NS) == 10
    assert closes.now(HABIT_NS + ONCE_NS + 5) == 0


def test_connections_that_a_relay_closes_together_are_one_closing() -> None:
    """Its restart cuts off many, some at the same count: no habit, and the smallest counts for a minute only."""
    closes = CloseCount()
    for n, count in enumerate((7, 7, 1, 1, 9)):
        closes.closed(count, n)
    assert (closes.now(9), closes.habit(9)) == (1, 0)
    assert closes.now(ONCE_NS + 9) == 0
    closes.closed(1, ONCE_NS + 9)
    assert closes.habit(ONCE_NS + 10) == 1


def test_a_mode_is_stepped_down_once_however_many_say_so_and_forgiven_later() -> None:
    """BDAT, PIPELINING, LOCKSTEP, one at a time; after ten minutes the best is tried again."""
    modes = ModeMemory()
    assert modes.stepped(0) is None
    assert modes.misbehaved(Mode.BDAT, 1)
    assert not modes.misbehaved(Mode.BDAT, 2)
    assert modes.ceiling(3) is Mode.PIPELINING
    assert modes.misbehaved(Mode.PIPELINING, 4)
    assert not modes.misbehaved(Mode.LOCKSTEP, 5)
    assert modes.stepped(6) is Mode.LOCKSTEP
    assert modes.ceiling(STEPPED_DOWN_NS + 5) is Mode.BDAT
    assert modes.stepped(STEPPED_DOWN_NS + 6) is None
