"""What the deaths of its holders say of a shard."""

from __future__ import annotations

from broker.custody import CLEARED_ROWS, POISON_DEATHS, SUSPECT_DEATHS, deaths_after


def test_deaths_one_after_the_other_convict() -> None:
    """Holders that die early make a shard suspect, and the third death is the row's."""
    deaths = 0
    for expected in (1, SUSPECT_DEATHS, POISON_DEATHS):
        deaths = deaths_after(deaths, 40, dead=True)
        assert deaths == expected


def test_a_holder_that_came_far_died_of_something_else() -> None:
    """After many messages the count begins anew: the row that was suspected has been passed."""
    assert deaths_after(SUSPECT_DEATHS, CLEARED_ROWS, dead=True) == 1
    assert deaths_after(SUSPECT_DEATHS, CLEARED_ROWS - 1, dead=True) == POISON_DEATHS


def test_a_holder_that_came_back_with_progress_clears_the_shard() -> None:
    """Without progress, since it was paused at once, nothing was shown."""
    assert deaths_after(SUSPECT_DEATHS, 1, dead=False) == 0
    assert deaths_after(SUSPECT_DEATHS, 0, dead=False) == SUSPECT_DEATHS
