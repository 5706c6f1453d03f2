"""A limit is a promise to the operator too: whoever has enough to send gets what the limit allows."""

from __future__ import annotations

import pytest

from tests.fixtures.rate_sim import MS, Limits, World, broken


def run(limits: Limits, seconds: float, tick_ms: float, *, leases: int = 3, late_ms: float = 0.05) -> list[int]:
    """Attempts of some senders that always have more to send, under one owner."""
    world = World({"campaign-1": limits})
    for _ in range(leases):
        world.open(("campaign-1",), ready=10**9, late_ns=int(late_ms * MS))
    for _ in range(int(seconds * 1000 / tick_ms)):
        world.step(int(tick_ms * MS))
    attempts = world.attempts("campaign-1")
    assert list(broken(limits, attempts)) == []
    return attempts


@pytest.mark.parametrize("burst", [None, 200])
@pytest.mark.parametrize(("per_second", "seconds"), [(5, 60), (20, 60), (33.3, 30), (100, 30), (1000, 10), (20_000, 1)])
def test_a_steady_demand_gets_its_rate(per_second: float, seconds: float, burst: int | None) -> None:
    """Buckets from one message deep to a thousand carry at least 99% of their rate."""
    limits = Limits(per_second=per_second, burst=burst)
    attempts = run(limits, seconds, tick_ms=5)
    assert len(attempts) >= 0.99 * per_second * (seconds - 0.05) + float(limits.depth) * 0.99 - 1


def test_a_bucket_as_deep_as_the_reach_carries_its_rate_for_a_sender_that_is_late() -> None:
    """Tokens that are used 15 ms late, and a broker that looks every 20 ms, cost no rate."""
    attempts = run(Limits(per_second=400), 30, tick_ms=20, late_ms=15)
    assert len(attempts) >= 0.99 * 400 * 30


@pytest.mark.parametrize(
    ("limits", "seconds", "tick_ms", "expected"),
    [
        (Limits(per_minute=5000), 600, 50, 50_000),
        (Limits(per_second=100, per_minute=5000, burst=200, wait_ms=1, cooldown_ms=1), 300, 20, 25_000),
        (Limits(per_minute=7), 6000, 500, 700),
        (Limits(per_hour=1000), 36_000, 2000, 10_000),
    ],
)
def test_a_steady_demand_gets_its_count(limits: Limits, seconds: float, tick_ms: float, expected: int) -> None:
    """Over many intervals a count window lets through 99% of its limit in each."""
    assert len(run(limits, seconds, tick_ms)) >= 0.99 * expected


@pytest.mark.parametrize(
    ("limits", "per_second"),
    [
        (Limits(wait_ms=1), 980),
        (Limits(wait_ms=10), 98),
        (Limits(per_second=100, burst=20, cooldown_ms=50), 99),
        (Limits(per_second=100, burst=20, wait_ms=5, cooldown_ms=50), 99),
    ],
)
def test_gaps_and_cooldowns_cost_little_more_than_they_say(limits: Limits, per_second: float) -> None:
    """Handing the turn from lease to lease costs less than 2%; a cooldown costs nothing that the bucket can hold."""
    assert len(run(limits, 20, tick_ms=5)) >= per_second * 20


def test_a_stopped_sender_does_not_stop_the_others() -> None:
    """A sender that stops with tokens in hand ties up its share of one slice; the rest of the rate goes on."""
    limits = Limits(per_second=200)
    world = World({"campaign-1": limits})
    senders = [world.open(("campaign-1",), ready=10**9) for _ in range(4)]
    for _ in range(200):
        world.step(5 * MS)
    senders[0].stall(1 << 60)
    for _ in range(20):
        world.step(5 * MS)
    before = len(world.attempts("campaign-1"))
    for _ in range(400):
        world.step(5 * MS)
    assert len(world.attempts("campaign-1")) - before >= 0.97 * 200 * 2
    world.die(senders[0])
    for _ in range(400):
        world.step(5 * MS)
    assert list(broken(limits, world.attempts("campaign-1"))) == []


def test_tokens_are_shared_by_want_and_nobody_starves() -> None:
    """Of a scarce rate a lease that wants three times as much gets three times as much, and the smallest gets some."""
    world = World({"campaign-1": Limits(per_second=50)})
    big = world.open(("campaign-1",), ready=3000)
    small = world.open(("campaign-1",), ready=1000)
    least = world.open(("campaign-1",), ready=1)
    for _ in range(4000):
        for sender, ready in ((big, 3000), (small, 1000)):
            sender.ready = ready
        world.step(5 * MS)
    assert big.spent / small.spent == pytest.approx(3, rel=0.05)
    assert least.spent == 1


def test_a_slow_relay_of_a_pool_leaves_the_campaigns_rate_to_the_others() -> None:
    """What one relay's window holds back, leases on another relay get in the same tick."""
    owners = {"campaign-1": Limits(per_second=100), "relay-slow": Limits(per_second=10), "relay-fast": Limits()}
    world = World(owners)
    slow = world.open(("campaign-1", "relay-slow"), ready=10**6)
    fast = world.open(("campaign-1", "relay-fast"), ready=10**6)
    for _ in range(4000):
        world.step(5 * MS)
    assert slow.spent == pytest.approx(10 * 20, rel=0.03)
    assert slow.spent + fast.spent >= 0.99 * 100 * 20
    for owner, limits in owners.items():
        assert list(broken(limits, world.attempts(owner))) == []


def test_nothing_is_hoarded_under_a_pause() -> None:
    """A sender with nothing left to send has given back what it had within 100 ms, to every window."""
    world = World({"campaign-1": Limits(per_second=1000, per_minute=50_000)})
    sender = world.open(("campaign-1",), ready=10**6)
    for _ in range(20):
        world.step(5 * MS)
    sender.ready, granted = 0, world.rates.granted(sender.number)
    for _ in range(21):
        world.step(5 * MS)
    assert sender.spent + sender.returned >= granted
    world.give_back(sender)
    world.step(5 * MS)
    file = world.files["campaign-1"]
    assert file.outstanding == 0
    assert file.minute.total == file.spent_total == sender.spent
