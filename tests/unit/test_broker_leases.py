"""How a shard changes hands (broker/leases.py): real tables and ledgers, the sender's part played by the test."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.contract.paths import StateDir
from broker.custody import POISON_DEATHS, SUSPECT_DEATHS, Custody
from broker.leases import CANCEL, CRASHES_TOLD, RETURN, RUN, Leases
from broker.running import Lease, Phase, Running, ShardState
from shm.arena import Arena, Shape
from shm.files.ledger import Ledger, States
from shm.live.counters import AT_HAND, ATTEMPTED, SENT, CounterTable
from shm.live.leases import LeaseTable, unpack_order
from tests.fixtures.campaigns_running import campaign_of, counts, lease_of

INSTANCE, BOOT, NOW_S = "ab" * 16, "boot-1", 5000
ROW, ROWS = 1, 5


class Scene:
    """A campaign of one shard, the tables, and what the leases reported."""

    def __init__(self, directory: Path) -> None:
        self.state = StateDir(directory)
        self.state.campaign(1).mkdir(parents=True)
        names_it: dict[str, Any] = {"instance": INSTANCE, "campaign": 1, "shard": 1}
        Ledger.create(self.state.ledger(1, 1), **names_it, rows=ROWS)
        self.arena = Arena.create(f"/ecm-{secrets.token_hex(6)}", Shape(actors=2, slots=2, relays=1), "0" * 12, "boot")
        self.table, self.counters = LeaseTable(self.arena), CounterTable(self.arena)
        self.campaign: Running = campaign_of(1, {1: counts(pending=ROWS)})
        self.shard: ShardState = self.campaign.shards[1]
        self.deaths: list[bool] = []
        self.returned: list[int] = []
        self.faults: list[str] = []
        self.gate: asyncio.Event | None = None  # what the files thread waits for, if anything
        self.leases = Leases(
            self.table, self.counters, Custody(self.state, INSTANCE, BOOT), self._work, self, lambda _: None,
            lambda: NOW_S, lambda lease: self.returned.append(lease.number),
            lambda _, fault: self.faults.append(fault), 2,
        )  # fmt: skip

    async def _work(self, function: Callable[[], Any]) -> Any:
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        return function()

    def opened(self, lease: Lease) -> None:
        """As `pacing`."""

    def closed(self, lease: Lease, *, dead: bool) -> None:
        """As `pacing`."""
        self.deaths.append(dead)

    async def offer(self) -> None:
        """Lease the shard to the sender."""
        await self.leases.offer(self.campaign, self.shard, ROW, relay=0, gated=False, retry=False)

    def shown(self) -> list[tuple[int, int, int, int, int, int]]:
        """What a sender that starts in this row would take up."""
        return self.table.scan(ROW)

    def work_two_and_give_back(self) -> None:
        """The sender sends two messages, closes the ledger and says so."""
        ((slot, number, _, _, epoch, _),) = self.shown()
        words = self.counters.open(ROW, slot, number)
        ledger = next(iter(self.leases.open.values())).ledger
        ledger.claim([0, 1])
        for row in (0, 1):
            ledger.sending(row, NOW_S)
            ledger.conclude(row, States.SENT, 250, None, 0, NOW_S)
        words[ATTEMPTED] = words[SENT] = 2
        ledger.close_lease(epoch)
        self.table.done(ROW, slot, number)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """One shard, idle."""
    made = Scene(tmp_path)
    yield made
    for lease in made.leases.open.values():
        lease.ledger.close()
    made.arena.close()
    Arena.unlink(made.arena.name)


def run(body: Coroutine[Any, Any, None]) -> None:
    """Run a test's body."""
    asyncio.run(asyncio.wait_for(body, 20))


def test_a_shard_goes_out_and_comes_back_with_its_counts(scene: Scene) -> None:
    """Its rows are counted once all the while; afterwards what is left is filed to be leased again."""

    async def body() -> None:
        await scene.offer()
        assert scene.shard.phase is Phase.LEASED
        assert scene.campaign.settled.audience == 0
        assert unpack_order(scene.shown()[0][5]).action == RUN
        scene.work_two_and_give_back()
        (lease,) = scene.leases.poll()
        assert scene.leases.poll() == [], "each is named once"
        await scene.leases.take_back(lease, dead=False)
        assert (scene.campaign.settled.pending, scene.campaign.settled.sent) == (3, 2)
        assert scene.campaign.due(NOW_S) == (1, None)
        assert scene.returned == [lease.number]
        assert scene.campaign.tally.sent == scene.leases.totals.sent == 2
        await scene.offer()
        assert scene.shown()[0][1] == lease.number + 1, "a number is used once"

    run(body())


def test_while_it_is_settled_a_lease_is_counted_once_and_offered_to_nobody(scene: Scene) -> None:
    """A disk may take minutes: a sender that starts in the holder's place must not take the lease up."""

    async def body() -> None:
        await scene.offer()
        scene.work_two_and_give_back()
        scene.gate = asyncio.Event()
        (lease,) = scene.leases.poll()
        settling = asyncio.create_task(scene.leases.take_back(lease, dead=False))
        await asyncio.sleep(0.01)
        assert not settling.done()
        assert scene.shown() == []
        assert scene.leases.holder_died(ROW) == [], "it is in other hands already"
        assert scene.leases.totals.sent + sum(c.sent for c in scene.leases.live().values()) == 2
        assert not scene.campaign.quiet
        scene.gate.set()
        await settling
        assert scene.leases.totals.sent + sum(c.sent for c in scene.leases.live().values()) == 2

    run(body())


@pytest.mark.parametrize(("cancelling", "action"), [(False, RETURN), (True, CANCEL)])
def test_what_was_ordered_while_a_ledger_was_opened_is_in_the_offer(
    scene: Scene, cancelling: bool, action: int
) -> None:
    """A pause or a cancel that comes then must not be followed by mail."""

    async def body() -> None:
        scene.gate = asyncio.Event()
        offering = asyncio.create_task(scene.offer())
        await asyncio.sleep(0)
        scene.campaign.state, scene.campaign.cancelling = ("cancelled" if cancelling else "paused"), cancelling
        scene.gate.set()
        await offering
        assert unpack_order(scene.shown()[0][5]).action == action

    run(body())


def test_a_dead_holders_rows_come_to_rest(scene: Scene) -> None:
    """What it was sending is sent once more, what it had claimed is as before."""

    async def body() -> None:
        await scene.offer()
        (lease,) = scene.leases.open.values()
        lease.ledger.claim([0, 1, 2])
        lease.ledger.sending(0, NOW_S)
        assert scene.leases.holder_died(ROW) == [lease]
        assert scene.shown() == []
        await scene.leases.take_back(lease, dead=True)
        settled = scene.campaign.settled
        assert (settled.pending, settled.deferred, settled.in_flight, settled.resent) == (4, 1, 0, 0), (
            "resent counts once it is"
        )
        assert scene.shard.deaths == 1

    run(body())


def test_a_ledger_that_cannot_be_opened_leaves_the_shard_idle_and_filed(scene: Scene) -> None:
    """The campaign hears of the fault, and the slot is free again."""
    path = scene.state.ledger(1, 1)

    async def body() -> None:
        path.rename(path.with_suffix(".away"))
        scene.campaign.take(1, fresh=True)
        await scene.offer()
        assert scene.shard.phase is Phase.IDLE
        assert scene.campaign.due(NOW_S) == (1, None)
        assert scene.campaign.quiet
        assert len(scene.faults) == 1
        path.with_suffix(".away").rename(path)
        await scene.offer()
        assert len(scene.shown()) == 1

    run(body())


def test_without_a_free_slot_the_shard_is_filed_again(scene: Scene) -> None:
    """The next round finds it."""

    async def body() -> None:
        scene.leases._taken = {(ROW, 0), (ROW, 1)}
        scene.campaign.take(1, fresh=True)
        await scene.offer()
        assert scene.campaign.due(NOW_S) == (1, None)
        assert scene.leases.open == {}

    run(body())


def test_a_shard_whose_lease_could_not_be_worked_rests_longer_each_time(scene: Scene, monkeypatch: Any) -> None:
    """A damaged file is not offered in a circle; one lease that goes well ends it."""
    now = [100.0]
    monkeypatch.setattr("broker.leases.time.monotonic", lambda: now[0])

    async def worked(*, failed: bool) -> None:
        scene.campaign.wake_rested(now[0])
        assert scene.campaign.due(NOW_S)[0] == 1
        scene.campaign.take(1, fresh=True)
        await scene.offer()
        ((slot, number, _, _, epoch, _),) = scene.shown()
        lease = scene.leases.open[number]
        if failed:
            scene.leases.failed(lease)
        lease.ledger.close_lease(epoch)
        scene.table.done(ROW, slot, number)
        await scene.leases.take_back(*scene.leases.poll(), dead=False)

    async def body() -> None:
        for rest_s in (5.0, 10.0):
            await worked(failed=True)
            now[0] += rest_s - 0.1
            scene.campaign.wake_rested(now[0])
            assert scene.campaign.due(NOW_S) == (None, None)
            now[0] += 0.2
        await worked(failed=False)
        assert scene.shard.failures == 0
        assert scene.campaign.due(NOW_S) == (1, None)

    run(body())


async def die(scene: Scene, *, at_hand: int | None = None, attempting: int | None = None) -> None:
    """The sender takes the shard, claims its first row, says perhaps which it composes or sends it, and dies."""
    scene.shard.rests_until = 0.0  # rested
    await scene.offer()
    (lease,) = scene.leases.open.values()
    words = scene.counters.open(ROW, lease.slot, lease.number)
    lease.ledger.claim(lease.ledger.due(NOW_S)[:1])
    if at_hand is not None:
        words[AT_HAND] = at_hand + 1
    if attempting is not None:
        lease.ledger.sending(attempting, NOW_S)
    assert scene.leases.holder_died(ROW, "signal SIGSEGV") == [lease]
    await scene.leases.take_back(lease, dead=True)


def test_deaths_that_are_no_rows_doing_convict_nobody_and_make_the_campaign_wait(scene: Scene) -> None:
    """The shard rests longer each time; after some deaths the campaign says how its senders die."""

    async def body() -> None:
        rests = []
        for death in range(1, SUSPECT_DEATHS + CRASHES_TOLD + 1):
            assert scene.campaign.crash == ""
            before = time.monotonic()
            await die(scene)
            if death >= POISON_DEATHS:
                rests.append(round(scene.shard.rests_until - before))
        assert rests == [1, 2, 4]
        assert scene.campaign.crash == "signal SIGSEGV"
        assert scene.campaign.probed_from > time.monotonic()
        assert (scene.campaign.settled.failed, scene.campaign.settled.pending) == (0, ROWS)

    run(body())


@pytest.mark.parametrize("how", [{"at_hand": 0}, {"attempting": 0}], ids=["composing", "sending"])
def test_a_row_at_which_its_sender_dies_again_and_again_is_convicted(scene: Scene, how: dict[str, int]) -> None:
    """It fails; the shard does not rest, and the campaign does not wait."""

    async def body() -> None:
        for _ in range(SUSPECT_DEATHS):
            await die(scene)
        assert scene.campaign.settled.failed == 0
        await die(scene, **how)
        assert (scene.campaign.settled.failed, scene.campaign.settled.pending) == (1, ROWS - 1)
        assert scene.shard.rests_until == 0.0

    run(body())


def test_a_row_of_another_lease_clears_those_that_died_with_it(scene: Scene) -> None:
    """Of the shards that a sender held, the one whose row it was composing is suspected, and no other."""

    async def body() -> None:
        for _ in range(SUSPECT_DEATHS):
            await die(scene)
        await scene.offer()
        (lease,) = scene.leases.open.values()
        scene.counters.open(ROW, lease.slot, lease.number)
        lease.ledger.claim([0])
        lease.ledger.sending(0, NOW_S)
        other = lease_of(campaign_of(2), 99, ROW)
        other.slot = 1 - lease.slot
        scene.leases.open[99] = other
        scene.counters.open(ROW, other.slot, 99)[AT_HAND] = 1
        assert scene.leases.holder_died(ROW) == [lease, other]
        del scene.leases.open[99]
        assert (lease.cleared, other.cleared, other.at_hand) == (True, False, 0)
        await scene.leases.take_back(lease, dead=True)
        assert scene.campaign.settled.failed == 0
        assert scene.campaign.crash == ""

    run(body())


def test_a_campaign_whose_senders_crashed_goes_on_once_a_relay_has_answered(scene: Scene) -> None:
    """A lease that only stands proves nothing; one message that was taken does."""

    async def body() -> None:
        scene.campaign.crash, scene.campaign.crashes = "signal SIGSEGV", 3
        await scene.offer()
        scene.leases.poll()
        assert scene.campaign.crash
        scene.work_two_and_give_back()
        (lease,) = scene.leases.poll()
        await scene.leases.take_back(lease, dead=False)
        assert (scene.campaign.crash, scene.campaign.crashes) == ("", 0)

    run(body())
