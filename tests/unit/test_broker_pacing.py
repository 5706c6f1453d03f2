"""From the law of limits to the senders (broker/pacing.py): windows that must be there, and are kept in turn."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.contract.limits import Rate
from broker.contract.paths import StateDir
from broker.contract.relay import Relay
from broker.contract.settings import Settings
from broker.pacing import Pacing
from shm.arena import Arena, Shape
from shm.live.clock import EngineClock
from shm.live.grants import SPENT, WANTED, GrantTable
from tests.fixtures.campaigns_running import campaign_of, counts, lease_of

HOURLY = Rate.from_table({"per_hour": 1000})


class Scene:
    """Pacing over real window files. `slow`: tasks wait once before each piece of work."""

    def __init__(self, directory: Path) -> None:
        self.arena = Arena.create(f"/ecm-{secrets.token_hex(6)}", Shape(actors=2, slots=2, relays=1), "0" * 12, "boot")
        relay = Relay.from_map({"name": "main", "host": "127.0.0.1", "port": 25, "tls": "none"})
        clock = EngineClock.create(self.arena, time.time_ns(), time.monotonic_ns())
        self.state = StateDir(directory)
        self.fault: OSError | None = None
        self.works = 0
        self.pacing = Pacing(
            self.state, "ab" * 16, "boot-1", Settings(relays={"main": relay}), GrantTable(self.arena), clock, self._work
        )

    async def _work(self, function: Callable[[], Any]) -> Any:
        for _ in range(3):
            await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        self.works += 1
        return function()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """No campaign yet."""
    made = Scene(tmp_path)
    yield made
    made.pacing.close()
    made.arena.close()
    Arena.unlink(made.arena.name)


def test_a_ring_that_is_full_takes_no_slice_out_of_turn(tmp_path: Path) -> None:
    """A pool's lease gets several slices a tick; what finds no room is taken back, whichever relay it was for."""
    arena = Arena.create(f"/ecm-{secrets.token_hex(6)}", Shape(actors=2, slots=2, relays=2), "0" * 12, "boot")
    relays = {n: Relay.from_map({"name": n, "host": "127.0.0.1", "port": 25, "tls": "none"}) for n in ("a", "b")}
    table, clock = GrantTable(arena), EngineClock.create(arena, time.time_ns(), time.monotonic_ns())

    async def work(function: Callable[[], Any]) -> Any:
        return function()

    pacing = Pacing(StateDir(tmp_path), "ab" * 16, "boot-1", Settings(relays=relays), table, clock, work)

    async def body() -> None:
        await pacing.start()
        campaign = campaign_of(1, {1: counts(pending=1)}, relays=[(0, 3), (1, 1)])
        await pacing.adopt(campaign, Rate.from_table({"per_second": 0}))
        lease = lease_of(campaign, 1, row=1)
        lease.gated, lease.routes = True, ((0, 3), (1, 1))
        pacing.opened(lease)
        words = table.accept(1, 0, 1)
        words[WANTED] = 1 << 40
        by_relay = {0: 0, 1: 0}
        for taken in range(200):
            pacing.tick()
            assert table.granted(1, 0) == pacing._rates.granted(1)
            for _ in range(taken % 3):  # the sender is slower than the broker, and makes room at any time
                piece = table.next_slice(1, 0)
                if piece is not None:
                    words[SPENT] += piece.n
                    by_relay[piece.relay] += piece.n
        for relay, name in enumerate(("relay-a", "relay-b")):
            assert pacing._rates._owners[name].file.spent_total <= by_relay[relay]
        assert abs(by_relay[0] - 3 * by_relay[1]) <= 3 * 16

    try:
        run(body())
    finally:
        pacing.close()
        arena.close()
        Arena.unlink(arena.name)


def run(body: Coroutine[Any, Any, None]) -> None:
    """Run a test's body."""
    asyncio.run(asyncio.wait_for(body, 20))


def test_campaigns_that_come_at_once_are_reserved_for_in_turn(scene: Scene) -> None:
    """Two tasks at one file's reserve would be a fault of the broker, and stop it."""

    async def round_() -> None:
        while True:
            if scene.pacing.reserves_due:
                await scene.pacing.keep_reserves()
            await asyncio.sleep(0)

    async def body() -> None:
        rounds = asyncio.create_task(round_())
        await asyncio.gather(*(scene.pacing.adopt(campaign_of(n), HOURLY) for n in range(1, 9)))
        while scene.pacing.reserves_due or scene.pacing._reserving:
            await asyncio.sleep(0)
        assert not rounds.done()
        rounds.cancel()

    run(body())


def test_a_disk_that_takes_no_reserve_is_asked_again_later(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in every round; and the broker goes on."""

    def failing(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    async def body() -> None:
        await scene.pacing.adopt(campaign_of(1), Rate.from_table({"per_second": 5}))
        scene.fault = OSError(5, "Input/output error")
        with pytest.raises(OSError, match="Input/output"):
            await scene.pacing.adopt(campaign_of(2), HOURLY)
        scene.fault = None
        await scene.pacing.adopt(campaign_of(2), HOURLY)
        scene.pacing._rates._owners["campaign-2"].file._durable = 0
        assert scene.pacing.reserves_due
        with monkeypatch.context() as patched:
            patched.setattr("shm.files.windows.os.fdatasync", failing)
            await scene.pacing.keep_reserves()
        began = time.monotonic()
        while not scene.pacing.reserves_due:
            await asyncio.sleep(0.01)
        assert time.monotonic() - began > 0.5
        await scene.pacing.keep_reserves()
        assert not scene.pacing.reserves_due

    run(body())


def test_a_campaign_whose_windows_are_missing_is_leased_to_nobody(scene: Scene) -> None:
    """To go on without them would be to send without limits."""
    campaign = campaign_of(1, {1: counts(pending=1)})
    with pytest.raises(KeyError):
        scene.pacing.gated(campaign, [0])
    with pytest.raises(KeyError):
        scene.pacing.opened(lease_of(campaign, 1, row=1))


def test_limits_make_a_lease_gated_and_none_make_it_free(scene: Scene) -> None:
    """The campaign's own decide here, since the relay has none."""

    async def body() -> None:
        await scene.pacing.start()
        limited, free = campaign_of(1), campaign_of(2)
        await scene.pacing.adopt(limited, HOURLY)
        await scene.pacing.adopt(free, Rate.from_table({"per_second": 0}))
        assert scene.pacing.gated(limited, [0])
        assert not scene.pacing.gated(free, [0])
        assert scene.state.windows("campaign-1").exists()
        scene.works = 0
        await scene.pacing.forget(limited)
        assert scene.works == 1, "a file is closed off the loop"
        assert scene.state.windows("campaign-1").exists()  # it may be retried
        limited.cancelling = True
        await scene.pacing.adopt(limited, HOURLY)
        scene.works = 0
        await scene.pacing.forget(limited)
        assert scene.works == 2, "and removed off it"
        assert not scene.state.windows("campaign-1").exists()

    run(body())
