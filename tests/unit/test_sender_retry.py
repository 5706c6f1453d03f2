"""When a deferred recipient is tried again (actors/sender/retry.py)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.sender.retry import GIVE_UP, RetryPolicy

RETRY = {"first_s": 300, "max_s": 14400, "give_up_s": 86400, "share": 0.25, "classes": {"greylisting": {"first_s": 60}}}


def policy(shard: int = 1, **changes: object) -> RetryPolicy:
    return RetryPolicy.from_maps(RETRY | changes, None, 7, shard)


def test_intervals_double_from_the_first_to_the_cap() -> None:
    """The interval doubles with each attempt and stays at the cap."""
    rules = policy()
    assert [rules.interval_s("other", n) for n in range(1, 9)] == [300, 600, 1200, 2400, 4800, 9600, 14400, 14400]
    assert rules.interval_s("other", 255) == 14400


def test_a_class_has_its_own_first_interval_and_the_common_cap() -> None:
    """A class that sets only first_s keeps the common max_s."""
    assert [policy().interval_s("greylisting", n) for n in (1, 2, 12)] == [60, 120, 14400]


@given(now_s=st.integers(1_700_000_000, 1_900_000_000), attempts=st.integers(1, 255), shard=st.integers(1, 10**6))
def test_never_earlier_than_the_interval_nor_later_than_a_tick_more(now_s: int, attempts: int, shard: int) -> None:
    """Rounding up to the shard's grid costs at most max(interval / 8, min(60 s, interval))."""
    rules = policy(shard, give_up_s=10**9)
    interval_s = rules.interval_s("other", attempts)
    late_s = rules.next_attempt_s("other", attempts, now_s, now_s) - now_s - interval_s
    assert 0 <= late_s < max(interval_s // 8, min(60, interval_s))


def test_all_rows_of_a_shard_wake_together_and_two_shards_do_not() -> None:
    """Rows deferred within one tick share a due time; another shard's grid lies elsewhere."""
    first, second = policy(1), policy(2)
    times = {first.next_attempt_s("other", 1, 1_800_000_000 + n, 1_800_000_000) for n in range(60)}
    assert len(times) <= 2
    assert not times & {second.next_attempt_s("other", 1, 1_800_000_000 + n, 1_800_000_000) for n in range(60)}


def test_the_last_wake_up_is_the_give_up_time_and_then_it_is_over() -> None:
    """A retry that would come after the give-up time wakes the row at that time; at that age it is given up."""
    rules = policy()
    assert rules.next_attempt_s("other", 9, 1_800_080_000, 1_800_000_000) == 1_800_086_400
    assert rules.next_attempt_s("other", 9, 1_800_086_400, 1_800_000_000) == GIVE_UP


def test_the_campaign_may_give_up_earlier_than_the_engine() -> None:
    """give_up_s of the campaign file wins over the engine's."""
    assert RetryPolicy.from_maps(RETRY, 5, 1, 1).next_attempt_s("other", 1, 105, 100) == GIVE_UP


def test_one_second_intervals_wake_after_one_second() -> None:
    """With first_s = 1 the grid is a second."""
    assert policy(first_s=1).next_attempt_s("other", 1, 1_800_000_000, 1_800_000_000) == 1_800_000_001
