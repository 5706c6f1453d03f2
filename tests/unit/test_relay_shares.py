"""Who may have how many connections (broker/relay_shares.py), on every step from one share to the next."""

from __future__ import annotations

import random

import pytest

from broker.relay_shares import FDS_KEPT, allowances, capped, connections_max, next_allowances


@pytest.mark.parametrize("senders", [1, 2, 3, 7])
@pytest.mark.parametrize("connections", [1, 2, 6, 20])
def test_shares_of_connections_sum_to_what_the_relay_allows(connections: int, senders: int) -> None:
    """They differ by one at most, the first ones having more."""
    shares = allowances(connections, senders)
    assert sum(shares) == connections
    assert len(shares) == senders
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] <= 1


@pytest.mark.parametrize("seed", range(20))
def test_no_step_lets_senders_have_more_than_the_limit_and_the_last_reaches_the_share(seed: int) -> None:
    """Senders open up to their allowance and let go slowly, in any order; the limit changes, too."""
    chance = random.Random(seed)
    rows = list(range(1, chance.choice([2, 3, 6])))
    limit = chance.randint(1, 30)
    current: dict[int, int] = {}
    held = dict.fromkeys(rows, 0)
    for _ in range(60):
        workers = [row for row in rows if chance.random() < 0.6]
        target = dict(zip(workers, allowances(limit, len(workers)), strict=True)) if workers else {}
        wanted = {row: target.get(row, 0) for row in rows}
        for _ in range(chance.randint(1, 4)):
            before, current = current, next_allowances(limit, current, held, wanted)
            assert sum(max(before.get(row, 0), current[row], held[row]) for row in rows) <= limit
            for row in rows:
                held[row] = chance.randint(min(held[row], current[row]), max(held[row], current[row]))
    held = {row: min(held[row], current[row]) for row in rows}
    assert next_allowances(limit, next_allowances(limit, current, held, wanted), held, wanted) == wanted


def test_a_limit_that_is_lowered_is_obeyed_before_anybody_gets_more() -> None:
    """Beyond a new limit nothing is given, however much is held."""
    assert next_allowances(4, {1: 10, 2: 0}, {1: 10, 2: 0}, {1: 2, 2: 2}) == {1: 2, 2: 0}
    assert next_allowances(4, {1: 2, 2: 0}, {1: 3, 2: 0}, {1: 2, 2: 2}) == {1: 2, 2: 1}
    assert next_allowances(4, {1: 4, 2: 0}, {1: 0, 2: 0}, {1: 2, 2: 2}) == {1: 2, 2: 0}, "it has not heard of it yet"


def test_file_descriptors_bound_what_one_sender_may_have_over_all_relays() -> None:
    """In proportion, and a relay that is served by a single connection is still served."""
    assert capped([5, 5], 20) == [5, 5]
    assert capped([1000, 500], 300) == [200, 100]
    assert sum(capped([10_000, 1, 1], 100)) <= 101
    assert capped([10_000, 1], 100)[1] == 1
    assert connections_max(None) > 10**6
    assert connections_max(10_000) == 9000 - FDS_KEPT
    assert connections_max(256) == 1
