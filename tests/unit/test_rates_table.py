"""The table of rates: what its callers rely on, one fact a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.rates import Grant, Rates
from shm.files.windows import WindowFile
from tests.fixtures.rate_sim import MS, Limits, S, World, broken

NOW = 10**15


def rates(owners: dict[str, Limits], *leases: int) -> Rates:
    """A table with these owners and leases under all of them."""
    table = Rates()
    for owner, limits in owners.items():
        table.add_owner(owner, limits, WindowFile.memory(NOW), NOW)
    for lease in leases:
        table.open_lease(lease, list(owners), NOW)
    return table


def tokens(grants: list[Grant]) -> int:
    return sum(grant.n for grant in grants)


def test_a_bucket_is_full_at_launch_and_handed_out_at_once_if_its_burst_is_written_down() -> None:
    """200 tokens now, and after them those that come within the reach."""
    table = rates({"c": Limits(per_second=100, burst=200)}, 1)
    table.want(1, 1000)
    assert table.tick(NOW) == [Grant(1, 200, NOW, 0, 0)]
    assert table.tick(NOW + MS) == [], "all 200 are out: the refill stops"


def test_without_a_burst_tokens_are_handed_out_evenly() -> None:
    """The least depth, 50 ms of the rate, leaves at no more than twice the rate."""
    table = rates({"c": Limits(per_second=1000)}, 1)
    table.want(1, 1000)
    (grant,) = table.tick(NOW)
    assert grant.n == 50
    assert grant.step_ns >= S // 2000


def test_no_slice_reaches_further_than_50_ms_ahead() -> None:
    """A gap of 10 ms leaves room for five attempts in a slice."""
    table = rates({"c": Limits(wait_ms=10)}, 1)
    table.want(1, 1000)
    assert table.tick(NOW) == [Grant(1, 5, NOW, 10 * MS, 10 * MS)]


def test_every_window_of_a_lease_is_charged_at_once() -> None:
    """Campaign and relay both count the tokens, and both get back what is returned."""
    table = rates({"campaign-1": Limits(per_minute=10), "relay-a": Limits(per_hour=7)}, 1)
    table.want(1, 100)
    assert tokens(table.tick(NOW)) == 7
    table.observe(1, 2, 5, NOW + MS)
    assert tokens(table.tick(NOW + MS)) == 5
    table.observe(1, 7, 5, NOW + 2 * MS)
    assert table.tick(NOW + 2 * MS) == []


def test_what_a_dead_actor_did_not_spend_counts_as_spent_and_what_was_given_back_does_not() -> None:
    """Two leases of five tokens: the dead one's are gone, the other's are free again."""
    table = rates({"c": Limits(per_minute=10)}, 1, 2, 3)
    for lease in (1, 2):
        table.want(lease, 5)
    assert tokens(table.tick(NOW)) == 10
    table.close_lease(1, 1, 0)
    table.close_lease(2, 1, table.granted(2) - 1)
    table.want(3, 100)
    assert tokens(table.tick(NOW + S)) == 4


def test_a_slice_that_could_not_be_published_is_withdrawn() -> None:
    """Its tokens are granted again, as if nothing had been."""
    table = rates({"c": Limits(per_minute=10)}, 1)
    table.want(1, 10)
    (grant,) = table.tick(NOW)
    table.withdraw(1, grant.n, NOW)
    assert table.granted(1) == 0
    assert table.tick(NOW + MS) == [grant._replace(first_ns=NOW + MS)]


def test_only_limits_need_grants() -> None:
    """No window and no gap at any owner: the lease is free; a cooldown needs a bucket to mean anything."""
    table = rates(
        {"free": Limits(), "cool": Limits(cooldown_ms=5), "gap": Limits(wait_ms=0.5), "hour": Limits(per_hour=1)}
    )
    assert not table.needs_grants(["free", "cool"])
    assert table.needs_grants(["free", "gap"])
    assert table.needs_grants(["hour"])
    table.set_rate("free", Limits(per_second=1), NOW)
    assert table.needs_grants(["free"])


def test_a_lease_under_no_limit_gets_what_it_wants() -> None:
    """A lease that is gated for another reason (a pool) is not held up."""
    table = rates({"c": Limits()}, 1)
    table.want(1, 12)
    assert table.tick(NOW) == [Grant(1, 12, NOW, 0, 0)]
    assert table.binding("c", NOW) is None


@pytest.mark.parametrize(
    ("limits", "name", "value", "within_s"),
    [
        (Limits(per_second=10, burst=2), "rate.per_second", 10, (0.05, 0.15)),
        (Limits(per_minute=5), "rate.per_minute", 5, (60, 60.3)),
        (Limits(per_second=100, per_hour=3), "rate.per_hour", 3, (3600, 3615)),
        (Limits(per_day=3), "rate.per_day", 3, (86400, 86800)),
        (Limits(wait_ms=400), "rate.wait_ms", 400, (0.38, 0.41)),
    ],
)
def test_the_binding_limit_is_named_with_its_value_and_its_end(
    limits: Limits, name: str, value: float, within_s: tuple[float, float]
) -> None:
    """While a lease waits, the answer says for what and until when; then something is granted, and not before."""
    table = rates({"c": limits}, 1)
    table.want(1, 6)
    spent = tokens(table.tick(NOW))
    table.want(1, 1000)
    table.observe(1, spent, 0, NOW + MS)
    assert table.tick(NOW + MS) == []
    bound = table.binding("c", NOW + MS)
    assert bound is not None
    assert (bound["name"], bound["value"]) == (name, value)
    assert within_s[0] <= (bound["until_ns"] - NOW) / S <= within_s[1]
    assert table.tick(bound["until_ns"] - 51 * MS) == []
    (grant,) = table.tick(bound["until_ns"])
    assert grant.first_ns == bound["until_ns"]


def test_no_limit_binds_when_nobody_waits() -> None:
    """Demand below the limit leaves nothing to name."""
    table = rates({"c": Limits(per_second=1000)}, 1)
    table.want(1, 3)
    table.tick(NOW)
    assert table.binding("c", NOW) is None
    assert table.binding("unknown", NOW) is None


def test_a_limit_changed_live_holds_from_the_next_tick_on() -> None:
    """Lowered: what was spent counts against it. Raised: the difference is granted. A new bucket begins empty."""
    table = rates({"c": Limits(per_minute=100)}, 1)
    table.want(1, 1000)
    assert tokens(table.tick(NOW)) == 100
    table.observe(1, 60, 40, NOW + MS)
    table.set_rate("c", Limits(per_minute=50), NOW + MS)
    assert table.tick(NOW + MS) == []
    table.set_rate("c", Limits(per_minute=70), NOW + 2 * MS)
    assert tokens(table.tick(NOW + 2 * MS)) == 10
    table.observe(1, 70, 40, NOW + 3 * MS)
    table.set_rate("c", Limits(per_second=10, burst=500), NOW + 3 * MS)
    assert table.tick(NOW + 3 * MS) == []
    assert tokens(table.tick(NOW + S)) == 10


def test_limits_changed_all_the_time_hold_while_they_stand() -> None:
    """Each rate holds over the time it stood, from when the tokens of the one before have lapsed."""
    world = World({"c": Limits(per_second=100)})
    world.open(("c",), ready=10**9)
    for per_second, burst in ((100, None), (1000, 30), (20, 1), (300, 2), (5, None)):
        limits = Limits(per_second=per_second, burst=burst)
        world.rates.set_rate("c", limits, world.now)
        world.step(5 * MS)
        since = world.now + 100 * MS
        for _ in range(200):
            world.step(5 * MS)
        stood = [at for at in world.attempts("c") if at >= since]
        assert list(broken(limits, stood)) == []
        assert len(stood) >= 0.97 * per_second * 0.9 - 1


def test_long_windows_grant_only_what_is_reserved_on_disk(tmp_path: Path) -> None:
    """No token of an hour's limit before the first reserve is synced, and never more than is."""
    table = Rates()
    file = WindowFile.open(
        tmp_path / "windows" / "c", instance="ab" * 16, owner="c", boot_id="b", mono_ns=NOW, wall_ns=NOW
    )
    table.add_owner("c", Limits(per_hour=1000), file, NOW)
    table.open_lease(1, ["c"], NOW)
    table.want(1, 10_000)
    assert table.tick(NOW) == []
    assert table.due_reserves() == [file]
    file.reserve(NOW, NOW)
    assert table.due_reserves() == [], "one sync at a time"
    assert table.tick(NOW) == []
    file.sync()
    assert tokens(table.tick(NOW)) == file.chunk
    assert table.due_reserves() == [file]
    file.close()


def test_a_turn_waits_for_the_tokens_of_the_one_before() -> None:
    """Under a gap a second lease gets nothing while the first has anything out, and then starts a gap later."""
    table = rates({"c": Limits(wait_ms=10)}, 1, 2)
    table.want(1, 2)
    assert tokens(table.tick(NOW)) == 2
    table.want(2, 5)
    assert table.tick(NOW + 20 * MS) == []
    table.observe(1, 1, 1, NOW + 65 * MS, NOW)
    (grant,) = table.tick(NOW + 65 * MS)
    assert (grant.lease, grant.gap_ns) == (2, 10 * MS)
    assert grant.first_ns >= NOW + 75 * MS


def reopened(path: Path, limits: Limits, boot: str, now: int) -> tuple[Rates, WindowFile]:
    """The table of a broker that finds this window file, with one lease that wants 1,000."""
    file = WindowFile.open(path, instance="ab" * 16, owner="c", boot_id=boot, mono_ns=now, wall_ns=now)
    table = Rates()
    table.add_owner("c", limits, file, now)
    table.open_lease(1, ["c"], now)
    table.want(1, 1000)
    return table, file


def test_a_bucket_is_empty_after_an_engine_restart(tmp_path: Path) -> None:
    """A new broker grants only what flows in from its start on, however long the old one was gone."""
    limits = Limits(per_second=100, burst=50)
    table, file = reopened(tmp_path / "c", limits, "one", NOW)
    assert tokens(table.tick(NOW)) == 50
    file.close()
    table, file = reopened(tmp_path / "c", limits, "one", NOW + 100 * S)
    (grant,) = table.tick(NOW + 100 * S)
    assert (grant.n, grant.first_ns) == (4, NOW + 100 * S + 10 * MS)
    file.close()


def test_a_minute_starts_as_used_up_after_a_power_loss(tmp_path: Path) -> None:
    """Nothing tells what was sent in the last minute, so it counts as full; the next one is free."""
    limits = Limits(per_minute=50)
    reopened(tmp_path / "c", limits, "one", NOW)[1].close()
    table, file = reopened(tmp_path / "c", limits, "two", NOW)
    assert table.tick(NOW) == []
    assert table.tick(NOW + 60 * S) == []
    assert tokens(table.tick(NOW + 61 * S)) == 50
    file.close()
