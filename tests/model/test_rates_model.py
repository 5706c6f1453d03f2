"""The law of rates against chance: whatever senders and brokers go through, no interval holds more than it may."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shm.files.windows import WindowFile
from tests.fixtures.rate_sim import MS, Limits, Sender, World, broken

S = 1000 * MS
INSTANCE = "5f" * 16
PAGE = 4096
CHANCE = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MORE = settings(CHANCE, max_examples=100)

speeds = st.sampled_from([0.7, 5.0, 19.9, 20.0, 33.3, 100.0, 2000.0])
bursts = st.sampled_from([None, 0, 1, 2, 7, 200])
waits = st.sampled_from([0.3, 1.0, 20.0, 70.0])
free = st.just(Limits())
fine = st.one_of(
    st.builds(Limits, per_second=speeds, burst=bursts),
    st.builds(Limits, per_minute=st.sampled_from([3, 60, 500])),
    st.builds(Limits, per_second=speeds, burst=bursts, wait_ms=waits, per_minute=st.sampled_from([0, 500])),
)
gaps = st.one_of(
    st.builds(Limits, wait_ms=waits),
    st.builds(
        Limits,
        per_second=st.sampled_from([33.3, 100.0, 1000.0]),
        burst=bursts,
        wait_ms=st.sampled_from([0.0, 0.0, 3.0]),
        cooldown_ms=st.sampled_from([1.0, 45.0, 200.0]),
    ),
)
coarse = st.one_of(
    st.builds(Limits, per_minute=st.sampled_from([1, 40, 700])),
    st.builds(Limits, per_hour=st.sampled_from([5, 900]), per_day=st.sampled_from([0, 1000])),
    st.builds(Limits, per_second=st.sampled_from([0.5, 20.0, 45.5]), burst=st.sampled_from([None, 30])),
)


class Day:
    """One run of chance, with everything that can happen to senders and brokers.

    much    how often something happens
    """

    def __init__(self, world: World, chance: random.Random, much: float = 1.0) -> None:
        self.world = world
        self.chance = chance
        self.much = much
        self.dead: list[Sender] = []  # killed, and the broker does not know yet

    def open(self) -> None:
        campaign = self.chance.choice([owner for owner in self.world.owners if owner.startswith("campaign")])
        self.world.open(
            (campaign, "relay-a"),
            ready=self.chance.choice([1, 5, 200, 10**6]),
            late_ns=self.chance.choice([0, 20_000, 6 * MS, 20 * MS, 45 * MS]),
            tells=self.chance.random() < 0.7,
        )

    def mishap(self) -> None:
        """Let one thing happen, most of the time nothing."""
        world, chance = self.world, self.chance
        what = chance.random() / self.much
        alive = [s for s in world.senders.values() if s not in self.dead]
        if what < 0.02 and len(world.senders) < 8:
            self.open()
        elif alive and what < 0.04:
            chance.choice(alive).stall(int(chance.expovariate(1 / (80 * MS))))
        elif alive and what < 0.05:
            self.dead.append(chance.choice(alive))
            self.dead[-1].stall(1 << 60)
        elif self.dead and what < 0.08:
            world.die(self.dead.pop(0))
        elif alive and what < 0.09:
            world.give_back(chance.choice(alive))
        elif alive and what < 0.15:
            chance.choice(alive).ready += chance.choice([1, 50])
        elif what < 0.154:
            world.crash()
            self.dead.clear()

    def live(self, steps: int, step_ns: int) -> None:
        for _ in range(3):
            self.open()
        for _ in range(steps):
            self.mishap()
            before = self.world.now
            stalled = self.chance.random() < 0.01
            grants = self.world.step(int(step_ns * self.chance.uniform(0.5, 60 if stalled else 1.5)))
            assert self.world.now > before
            for grant in grants:
                assert grant.first_ns >= self.world.now
                assert grant.first_ns + (grant.n - 1) * grant.step_ns <= self.world.now + 50 * MS

    def judge(self) -> None:
        for owner, limits in self.world.owners.items():
            attempts = self.world.attempts(owner)
            assert list(broken(limits, attempts)) == [], f"{owner}: {limits}"


@CHANCE
@given(campaigns=st.tuples(fine, st.one_of(free, fine)), relay=st.one_of(free, fine), seed=st.integers(0, 2**32))
def test_no_limit_is_ever_exceeded_whatever_happens_to_senders_and_brokers(
    campaigns: tuple[Limits, Limits], relay: Limits, seed: int
) -> None:
    """Under any limits, stalls, deaths, returns and broker crashes, every window of every owner holds."""
    world = World({"campaign-1": campaigns[0], "campaign-2": campaigns[1], "relay-a": relay})
    day = Day(world, random.Random(seed))
    day.live(steps=300, step_ns=5 * MS)
    day.judge()


@MORE
@given(campaign=gaps, relay=st.one_of(free, gaps), seed=st.integers(0, 2**32))
def test_gaps_and_cooldowns_hold_while_the_turn_goes_from_sender_to_sender(
    campaign: Limits, relay: Limits, seed: int
) -> None:
    """However often turns change, by stalls, deaths and crashes too, no two attempts are closer than the gap."""
    world = World({"campaign-1": campaign, "relay-a": relay})
    day = Day(world, random.Random(seed), much=4.0)
    day.live(steps=300, step_ns=5 * MS)
    day.judge()


@MORE
@given(limits=st.tuples(coarse, st.one_of(free, coarse)), seed=st.integers(0, 2**32))
def test_no_interval_of_a_minute_an_hour_or_a_day_holds_more_than_its_limit(
    limits: tuple[Limits, Limits], seed: int
) -> None:
    """The same over hours, with a broker that looks only every few seconds."""
    world = World(dict(zip(("campaign-1", "relay-a"), limits, strict=True)))
    day = Day(world, random.Random(seed))
    day.live(steps=300, step_ns=10 * S)
    day.judge()


class Disk:
    """A window file whose machine may lose power: then each page that was not synced is the old one or the new one."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        self.path = path
        self.chance = chance
        self.synced = b""
        self.boot = "first"
        self.wall_offset_ns = 0

    def open(self, _owner: str, now: int) -> WindowFile:
        file = WindowFile.open(
            self.path,
            instance=INSTANCE,
            owner="campaign-1",
            boot_id=self.boot,
            mono_ns=now,
            wall_ns=now + self.wall_offset_ns,
        )
        self.sync(file)
        return file

    def sync(self, _file: WindowFile) -> None:
        self.synced = self.path.read_bytes()

    def lose_power(self) -> None:
        now = self.path.read_bytes()
        pages = [
            (now if self.chance.random() < 0.5 else self.synced)[at : at + PAGE] for at in range(0, len(now), PAGE)
        ]
        self.path.write_bytes(b"".join(pages))
        self.boot += "'"


@CHANCE
@given(
    limits=st.builds(
        Limits,
        per_minute=st.sampled_from([0, 30]),
        per_hour=st.sampled_from([0, 7, 150]),
        per_day=st.sampled_from([40, 500]),
        per_second=st.sampled_from([0.0, 0.5, 10.0]),
    ),
    seed=st.integers(0, 2**32),
    away_s=st.sampled_from([1, 59, 900, 5000]),
)
def test_limits_hold_across_power_losses(
    tmp_path_factory: pytest.TempPathFactory, limits: Limits, seed: int, away_s: int
) -> None:
    """Whichever pages of a window file survive a power loss, every window holds from before it to after it."""
    chance = random.Random(seed)
    disk = Disk(tmp_path_factory.mktemp("windows") / "campaign-1", chance)
    attempts: list[int] = []
    start_ns = 10**15
    for _ in range(3):
        world = World({"campaign-1": limits}, disk.open, start_ns, disk.wall_offset_ns)
        world.on_sync = disk.sync
        for _ in range(2):
            world.open(("campaign-1",), ready=10**6)
        for _ in range(chance.choice([1, 2, 5, 60])):
            world.step(int(chance.uniform(1, 120) * S))
            if chance.random() < 0.02:
                for sender in list(world.senders.values()):
                    world.die(sender)
                    world.open(("campaign-1",), ready=10**6)
        file = world.files["campaign-1"]
        world.now += 40 * MS
        for sender in world.senders.values():
            sender.run(world.now)  # what was just granted is spent, and the broker never hears of it
        if file.chunk and chance.random() < 0.5:
            file.reserve(world.now, world.now + disk.wall_offset_ns)  # the power goes before the sync
        attempts += [at + disk.wall_offset_ns for at in world.attempts("campaign-1")]
        file.close()
        disk.lose_power()
        wall_ns = world.now + disk.wall_offset_ns + away_s * S
        start_ns = int(chance.uniform(1, 400) * S)
        disk.wall_offset_ns = wall_ns - start_ns
    assert list(broken(limits, attempts)) == []
