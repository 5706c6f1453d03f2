"""The number of connections that the controller finds (actors/sender/growth.py): simulated relays with noise."""

from __future__ import annotations

import random

import pytest

from actors.sender.growth import Growth
from actors.sender.throughput import Sight
from tests.fixtures.relay_sim import Player, best_at, run

SEEDS = range(4)


def quiet(now_s: float, connections: int, **changes: object) -> Sight:
    """A relay at which nothing is the matter, and rows that wait for connections."""
    sight = Sight(now_s, connections, int(now_s * connections * 100), 0.01, True, 0, 0, 1000, 1)
    return sight._replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("best", "rate"), [(8, 40.0), (8, 400.0), (8, 8000.0), (200, 2000.0)])
def test_a_relay_with_a_best_number_of_connections_gets_that_number(best: int, rate: float, seed: int) -> None:
    """Slower with fewer and with more: after 40 s within a tenth of the best fixed setting, probes and all."""
    assert run(best_at(best, rate), seed=seed) >= 0.9 * rate


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("allowance", [50, 1000])
def test_a_relay_that_is_slow_for_each_gets_all_that_are_allowed(allowance: int, seed: int) -> None:
    """Throughput in proportion to connections: the allowance is the best setting, and never exceeded."""
    assert run(lambda n, _: 10.0 * n, allowance=allowance, seed=seed) >= 0.9 * 10.0 * allowance


@pytest.mark.parametrize("seed", SEEDS)
def test_a_relay_that_is_fast_with_few_gets_few(seed: int) -> None:
    """One whose own speed is the limit, from five connections on, gets its fill and is not crowded."""
    most: list[int] = []

    def watch(now_s: float, players: list[Player]) -> None:
        if now_s > 40:
            most.append(players[0].open)

    assert run(lambda n, _: min(1000.0 * n, 5000.0), seed=seed, watch=watch) >= 0.9 * 5000
    assert sum(most) / len(most) < 64, "a handful is no crowd"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("engines", [1, 2])
def test_a_relay_that_takes_ten_connections_is_asked_for_more_but_seldom(engines: int, seed: int) -> None:
    """421 above ten: nine tenths of what ten carry, and no hammering, for one engine and for two strangers."""
    refused = [0]

    def watch(_now_s: float, players: list[Player]) -> None:
        refused[0] = sum(player.refused for player in players)

    assert run(lambda n, _: 20.0 * n, refuse_above=10, engines=engines, seed=seed, watch=watch) >= 0.9 * 200
    assert refused[0] <= 15 * engines


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("before", "after"), [((200, 2000.0), (40, 400.0)), ((20, 200.0), (200, 2000.0))])
def test_a_relay_that_changes_is_followed(before: tuple[int, float], after: tuple[int, float], seed: int) -> None:
    """The best number falls to a fifth, or rises tenfold, at 30 s: found again within a minute, nearly or wholly."""
    old, new = best_at(*before), best_at(*after)
    reached = run(lambda n, now_s: (old if now_s < 30 else new)(n, now_s), seconds=100, tail_s=15, seed=seed)
    assert reached >= 0.85 * after[1]


def test_two_engines_that_know_nothing_of_each_other_share_a_relay() -> None:
    """Each sees only its own throughput, and the other as noise: on average within a tenth of the best."""
    reached = [run(best_at(64, 2000.0), engines=2, seed=seed) for seed in range(8)]
    assert sum(reached) / len(reached) >= 0.9 * 2000


def test_a_near_relay_is_reached_within_a_second() -> None:
    """From one connection to sixteen and more, if each brings more."""
    seen: list[int] = []
    run(lambda n, _: 500.0 * n, seconds=1.5, tail_s=0.5, watch=lambda _, players: seen.append(players[0].open))
    assert seen[0] == 1
    assert seen[-1] >= 16


def test_without_demand_nothing_grows() -> None:
    """No row waits for a connection: one is enough."""
    most = [0]
    run(lambda n, _: 100.0 * n, crowded=False, seconds=20, watch=lambda _, players: most.append(players[0].open))
    assert max(most) == 1


def grown(connections: int) -> tuple[Growth, float]:
    """A controller that has found `connections`, and the time it is then."""
    growth, now_s = Growth(random.Random(1)), 0.0
    growth.adopt(connections)
    for _ in range(8):
        now_s += 0.025
        assert growth.step(quiet(now_s, connections)) == connections
    return growth, now_s


def test_throttling_halves_at_once_and_is_recovered_from_step_by_step() -> None:
    """32 connections become 16 in the same look, then a few more each second."""
    growth, now_s = grown(32)
    assert growth.step(quiet(now_s + 0.025, 32, slowed=1)) == 16
    assert growth.step(quiet(now_s + 0.050, 16, slowed=2)) == 16, "what was under way says the same again"
    seen = [growth.step(quiet(now_s + 0.1 + n, growth.target, slowed=2)) for n in range(1, 10)]
    assert seen == sorted(seen)
    assert 16 < seen[3] < 32
    later = [growth.step(quiet(now_s + 10 + n, growth.target, slowed=2)) for n in range(20)]
    assert max(later) >= 32


def test_a_refused_connection_is_believed_at_once() -> None:
    """Ten are open and the eleventh is refused: ten it is, for ten seconds about."""
    growth, now_s = grown(10)
    growth._settle(14)  # what it would like to try
    assert growth.step(quiet(now_s + 0.025, 10, refused=1)) == 10
    for n in range(1, 250):
        assert growth.step(quiet(now_s + 0.025 * n, growth.target, refused=1)) <= 10


def test_a_lowered_allowance_is_obeyed_at_once() -> None:
    """Never beyond it, in any phase."""
    growth, now_s = grown(32)
    assert growth.step(quiet(now_s + 0.025, 32, allowance=5)) == 5


def test_a_relay_that_is_gone_is_begun_anew_with_one_connection() -> None:
    """Refusals with nothing open say nothing of a limit: from one, without a pause."""
    growth, now_s = grown(32)
    assert growth.step(quiet(now_s + 0.025, 0, refused=1)) == 1
    now_s += 1
    for _ in range(200):
        now_s += 0.025
        growth.step(quiet(now_s, growth.target, refused=1, done=int(now_s * 1000 * growth.target)))
    assert growth.target > 8
