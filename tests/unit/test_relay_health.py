"""How a relay stands (broker/relay_health.py): simulated time, and what senders may see in it."""

from __future__ import annotations

import pytest

from broker.relay_health import (
    DOWN_S,
    FORGET_S,
    QUIET_S,
    STEADY_S,
    STEPPED_S,
    TRIAL_S,
    VERDICTS,
    Cause,
    Health,
    Sight,
    SteppedMode,
)
from shm.live.relays import RelayState

UP, TRIPPED, PROBING = RelayState.UP, RelayState.TRIPPED, RelayState.PROBING
BLAMED = Sight(connections=1, blamed=VERDICTS)


def tripped(sight: Sight = BLAMED) -> Health:
    """One that has just tripped at 0."""
    health = Health()
    assert health.look(0.0, sight)
    assert health.state is TRIPPED
    return health


def test_nearly_all_verdicts_must_blame_us_and_enough_of_them() -> None:
    """19 of 19, or 79 of 100, are not enough; 80 of 100 are, and so are messages that come too fast."""
    assert not Health().look(0.0, Sight(connections=1, blamed=VERDICTS - 1))
    assert not Health().look(0.0, Sight(connections=1, accepted=21, blamed=79))
    assert Health().look(0.0, Sight(connections=1, accepted=20, blamed=80))
    assert Health().look(0.0, Sight(connections=1, blamed=10, throttled=10))


def test_verdicts_are_judged_over_some_seconds_and_slow_ones_in_a_row() -> None:
    """What was good ten seconds ago is no excuse; a campaign of one message in five seconds is seen to fail, too."""
    health = Health()
    assert not health.look(0.0, Sight(connections=1, accepted=1000))
    assert health.look(10.0, BLAMED)
    slow = Health()
    for n in range(1, VERDICTS):
        assert not slow.look(5.0 * n, Sight(connections=1, blamed=1))
    assert slow.look(5.0 * VERDICTS, Sight(connections=1, blamed=1))
    mixed = Health()
    for n in range(10 * VERDICTS):
        assert not mixed.look(5.0 * n, Sight(connections=1, blamed=n % 5 > 0, accepted=n % 5 == 0))


def test_failing_connections_trip_it_after_a_while_unless_something_works() -> None:
    """Failures that lie far apart have nothing to do with each other."""
    health = Health()
    assert not health.look(0.0, Sight(failures=1))
    assert not health.look(DOWN_S / 2, Sight(connections=1, failures=3))
    assert not health.look(DOWN_S, Sight(failures=1))
    assert not health.look(DOWN_S + FORGET_S + 1, Sight(failures=1))
    assert health.look(2 * DOWN_S + FORGET_S + 1, Sight(refusals=1))
    assert (health.state, health.cause) == (TRIPPED, Cause.AWAY)


@pytest.mark.parametrize(
    ("cause", "pauses"), [(Cause.BLAMES, [30, 60, 120, 240, 480, 900, 900]), (Cause.AWAY, [2, 4, 8, 16, 32, 60, 60])]
)
def test_the_back_off_doubles_up_to_its_longest(cause: Cause, pauses: list[float]) -> None:
    """A probe that fails trips it again, for twice as long."""
    bad = BLAMED if cause is Cause.BLAMES else Sight(failures=1)
    health, now = Health(), 0.0
    health.look(now, bad)
    if cause is Cause.AWAY:
        now = DOWN_S
        health.look(now, bad)
    for pause in pauses:
        assert health.until - now == pause
        assert not health.look(now + pause - 0.1, Sight())
        now += pause
        assert health.look(now, Sight())
        assert health.state is PROBING
        assert not health.look(now, Sight()), "nobody had anything to send: it is probed whenever somebody has"
        assert health.look(now, bad)
        assert health.state is TRIPPED


def test_a_probe_that_is_taken_makes_it_up() -> None:
    """One message is enough; after a while up the next trip is a first one."""
    health = tripped()
    health.look(30.0, Sight())
    assert not health.look(31.0, Sight(connections=1)), "a connection alone says nothing about blame"
    assert health.look(32.0, Sight(connections=1, accepted=1))
    assert health.state is UP
    assert not health.look(32.0 + STEADY_S, Sight(connections=1, accepted=1))
    assert health.look(33.0 + STEADY_S, BLAMED)
    assert health.trips == 1


def test_a_relay_that_flaps_waits_longer_each_time() -> None:
    """Up for a moment is not well."""
    health = tripped()
    health.look(30.0, Sight())
    health.look(31.0, Sight(connections=1, accepted=1))
    assert health.look(32.0, BLAMED)
    assert health.until == 32.0 + 60.0


def test_a_probe_whose_people_are_all_refused_is_a_success_in_the_end() -> None:
    """Words about people are no words about us."""
    health = tripped()
    health.look(30.0, Sight())
    assert not health.look(29.0 + QUIET_S, Sight(connections=1))
    assert health.look(30.0 + QUIET_S, Sight(connections=1))
    assert health.state is UP


def test_a_relay_that_was_away_is_up_as_soon_as_a_connection_stands() -> None:
    """Also one that was on its way when it tripped."""
    for late in (1.0, 3.0):
        health = Health()
        health.look(0.0, Sight(failures=1))
        health.look(DOWN_S, Sight(failures=1))
        health.look(DOWN_S + late, Sight())
        assert health.look(DOWN_S + late, Sight(connections=1))
        assert health.state is UP


def test_a_trip_of_an_earlier_start_is_waited_out() -> None:
    """What is left of it counts, and how often it happened before."""
    health = Health(100.0)
    health.restore(100.0, 110.0, 3, Cause.BLAMES)
    assert not health.look(109.0, Sight(connections=1))
    assert health.look(110.0, Sight())
    assert health.look(111.0, BLAMED)
    assert health.until == 111.0 + 240.0


def test_a_stepped_mode_comes_back_by_a_trial_that_holds() -> None:
    """Only the sender that tries is without a ceiling meanwhile."""
    stepped = SteppedMode()
    assert stepped.step(0.0, 2)
    assert not stepped.step(1.0, 2), "the second sender says nothing new"
    assert [stepped.ceiling(tries=tries) for tries in (True, False)] == [2, 2]
    assert not stepped.look(STEPPED_S, 2, 0)
    assert stepped.look(STEPPED_S + 1, 2, 0)
    assert [stepped.ceiling(tries=tries) for tries in (True, False)] == [0, 2]
    assert not stepped.look(STEPPED_S + 2, 3, 0)
    assert stepped.look(STEPPED_S + 2 + TRIAL_S, 3, 0)
    assert [stepped.ceiling(tries=tries) for tries in (True, False)] == [0, 0]


def test_a_trial_that_fails_is_made_again_much_later() -> None:
    """And a worse mode is remembered as that."""
    stepped = SteppedMode()
    stepped.step(0.0, 2)
    stepped.look(STEPPED_S + 1, 2, 0)
    assert stepped.step(STEPPED_S + 5, 2)
    assert stepped.ceiling(tries=True) == 2
    assert stepped.until == 2 * STEPPED_S + 5
    assert stepped.step(STEPPED_S + 6, 1)
    assert stepped.ceiling(tries=False) == 1
