"""The sender: works leased shards through the operator's relays.

Reads like the walk of a recipient's shard: `leases` takes an offer -> `handover` opens its files -> `lease`
claims rows -> `commit` makes the claims durable -> `walk` composes, paces, records and hands over, on `relays`'
connections -> replies conclude -> `handover` gives the lease back.  This module holds the parts together and turns
the wheel (`_tick`); the hot path is `walk`.

- A lease is done when nothing of it is due soon and nothing is in flight, or when told to return and nothing is in
  flight.
"""

from __future__ import annotations

import asyncio
import gc
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from actors import runtime
from actors.runtime import Context, Message
from actors.sender.alarm import Alarm
from actors.sender.commit import GroupCommit
from actors.sender.handover import Handover
from actors.sender.lanes import Lanes
from actors.sender.lease import Lease
from actors.sender.leases import Leases
from actors.sender.relays import Pool
from actors.sender.walk import Walk
from broker.contract.boot import Boot
from broker.contract.endpoint import Endpoint
from shm.live.grants import RETURNED, SPENT, WANTED, GrantTable
from shm.live.histogram import Histogram
from shm.live.leases import LeaseTable
from shm.live.relays import RelayTable
from shm.live.suppressed import SuppressionReader

__all__ = ["Sender", "main"]

TICK_S: Final = 0.025  # while leases are held; without any, the runtime's step looks at the table
PACE_S: Final = 0.010  # how often grants are looked for: slices reach 50 ms ahead
DRAIN_S: Final = 25.0  # what a relay may take to answer for what is in flight when the engine stops
FAREWELL_S: Final = 1.0  # for QUIT


class Sender:
    """The actor (see `actors.runtime.Actor`)."""

    async def start(self, ctx: Context) -> None:
        """Find the tables, know the relays; nothing is opened before the first lease."""
        self._ctx = ctx
        self._loop = asyncio.get_running_loop()
        settings = ctx.boot.settings
        self._row = ctx.boot.row
        self._retry_share = settings["retry"]["share"]
        self._table = LeaseTable(ctx.arena)
        self._suppression = SuppressionReader(ctx.arena)
        self._disk = ThreadPoolExecutor(1, "disk")
        self._handover = Handover(ctx.arena, ctx.state, ctx.boot.instance, self._row, list(settings["relays"]))
        self._commit = GroupCommit(self._disk, settings["ledger"]["sync_ms"] * 1_000_000, self._committed)
        self._alarm = Alarm(self._loop, self._pace)
        self._walk = self._make_walk()
        self._relay_table = RelayTable(ctx.arena)
        for relay in map(Endpoint.from_map, settings["relays"].values()):
            self._add_pool(relay)
        self._leases = Leases(ctx, self._table, self._handover, self._disk, self._opened, self._soon)
        self._draining = False
        self._empty = asyncio.Event()
        self._soon_set = self._pacing = self._ticking = self._ended = False
        gc.collect()
        gc.freeze()  # what lives as long as the process is not looked at again

    def _make_walk(self) -> Walk:
        ctx = self._ctx
        walk = Walk(
            self._row,
            grant_table=GrantTable(ctx.arena),
            suppression=self._suppression,
            clock=ctx.clock,
            histogram=Histogram(ctx.arena, self._row),
            alarm=self._alarm,
            reorder=self._reorder,
            hungry=self._hungry,
            news=self._news,
        )
        walk.suppressions_seen = self._suppression.count()
        return walk

    def _add_pool(self, relay: Endpoint) -> None:
        walk = self._walk
        pool = Pool(len(walk.pools), relay, self._row, self._relay_table, walk, self._ctx.fault)
        pool.lanes = Lanes(self._retry_share)
        walk.pools.append(pool)

    def on_message(self, message: Message) -> None:
        """`leases`: look at the table; `relays`: the settings were read again."""
        match message.get("type"):
            case "leases":
                self._soon()
            case "relays":
                self._reload(message["relays"])
                self._ctx.send({"type": "relays.taken", "generation": message.get("generation", 0)})
            case other:
                self._ctx.log.warning("unknown message was ignored", type=other)

    def _reload(self, relays: dict[str, Any]) -> None:
        """New settings of relays: known ones keep their place, new ones are added behind them."""
        by_name = {pool.relay.name: pool for pool in self._walk.pools}
        for name, values in relays.items():
            relay = Endpoint.from_map(values)
            if name in by_name:
                by_name[name].become(relay)
            else:
                self._add_pool(relay)
                self._handover.relay_names.append(name)

    # The wheel.

    def step(self) -> None:
        """Ten times a second, so that an offer whose message was lost is seen."""
        if not self._ticking:
            self._tick()

    def _soon(self) -> None:
        """Turn the wheel in this turn of the loop."""
        if not self._soon_set:
            self._soon_set = True
            self._loop.call_soon(self._tick)

    def _turn(self) -> None:
        self._ticking = False
        self._tick()

    def _tick(self) -> None:
        """Look at everything that is not driven by replies: offers, orders, claims, connections, ends."""
        self._soon_set = False
        now_ns = time.monotonic_ns()
        if not self._draining:
            self._leases.scan()
        if self._suppression.count() != self._walk.suppressions_seen:
            self._news()
        for lease in self._leases:
            self._look_after(lease)
        self._pace()
        wanted = self._wanted_relays()
        for pool in self._walk.pools:
            pool.tick(now_ns, wanted=pool.index in wanted)
        if self._commit.due(now_ns):
            self._begin_commit()
        if self._draining and not self._leases:
            self._empty.set()
        if self._leases and not self._ticking:
            self._ticking = True
            self._loop.call_later(TICK_S, self._turn)

    # Leases, looked after.

    def _opened(self, lease: Lease) -> None:
        """A lease's files are open: bring it up to date and let it claim."""
        lease.leaving = self._draining
        self._catch_up(lease)
        if lease.stopping:
            self._stop(lease)
        self._commit.urgent = True
        self._soon()

    def _look_after(self, lease: Lease) -> None:
        if self._table.order(self._row, lease.offer.slot) != lease.order_word:
            self._reorder(lease)
        if lease.stopping and not lease.stopped:
            self._stop(lease)
        now_s = self._ctx.clock.now_s()
        if not lease.stopping:
            lease.give_up(now_s)
        if lease.claimed and not self._usable(lease):
            self._walk.deactivate(lease)
            lease.unclaim()
        elif lease.exhausted(now_s):
            self._close(lease)
        elif not lease.claimed and lease.left:
            self._commit.urgent = True

    def _reorder(self, lease: Lease) -> None:
        """The broker changed the order: pause, cancel, free or gated, another relay."""
        self._walk.deactivate(lease)
        was_gated = lease.gated
        lease.obey(self._table.order(self._row, lease.offer.slot))
        lease.stopped = False
        if was_gated and not lease.gated:
            self._walk.gate.give_back(lease)
        if lease.stopping:
            self._stop(lease)
        elif (pool := self._walk.activate(lease)) is not None:
            self._soon()
            self._loop.call_soon(self._walk.pump, pool)  # not from here: the walk may be in the middle of a message

    def _stop(self, lease: Lease) -> None:
        """Nothing more of it may leave: rows go back to what they were, or are cancelled."""
        lease.stopped = True
        self._walk.deactivate(lease)
        self._walk.gate.give_back(lease)
        lease.unclaim()
        if lease.cancelled:
            lease.cancel(self._ctx.clock.now_s())
        self._soon()

    def _close(self, lease: Lease) -> None:
        self._walk.deactivate(lease)
        self._walk.gate.give_back(lease)
        self._leases.close(lease)

    # Rows: claimed, durable, suppressed, used up.

    def _usable(self, lease: Lease) -> bool:
        """Whether rows claimed now have a way to a relay."""
        pools = self._walk.pools
        if lease.gated:
            return any(pools[index].hopeful for index in lease.places)
        return pools[lease.relay].hopeful

    def _begin_commit(self) -> None:
        now_s = self._ctx.clock.now_s()
        for lease in self._leases:
            if not lease.stopping and self._usable(lease):
                lease.claim(now_s)
        dirty = [lease for lease in self._leases if lease.dirty]
        traces = self._leases.take_traces()
        self._commit.urgent = False
        if dirty or traces:
            self._commit.begin(dirty, traces)

    def _committed(self, results: list[Lease], trace_fault: str) -> None:
        """A sync has returned: what it made durable may be sent."""
        if trace_fault:
            self._ctx.fault(trace_fault)
        for lease in results:
            if lease.closing:
                continue
            if lease.fault:
                self._stop(lease)
                continue
            lease.durable()
            if not lease.gated:
                self._walk.activate(lease)
        self._pace()
        for pool in self._walk.pools:
            self._walk.pump(pool)
        if self._commit.urgent:
            self._soon()

    def _hungry(self, lease: Lease) -> None:
        """A lease has nothing ready: sync at once if that gives it something, or see whether it is done."""
        if lease.closing:
            return
        if lease.claiming or lease.syncing or lease.left:
            lease.starved = True
            self._commit.urgent = True
        self._soon()

    def _news(self) -> None:
        """Somebody was suppressed: no held row of theirs may leave."""
        self._walk.suppressions_seen = self._suppression.count()
        for lease in self._leases:
            self._catch_up(lease)

    def _catch_up(self, lease: Lease) -> None:
        for entries in self._suppression.since(lease.suppressed_seen):
            lease.suppress(entries, self._ctx.clock.now_s())
            lease.suppressed_seen += len(entries)

    # Pace: what gated leases may send now, and what they ask for.

    def _pace(self) -> None:
        """Take grants up, let what is due take its turns, say what is wanted."""
        pools = self._walk.pools
        gated = False
        for lease in self._leases:
            if not lease.gated or lease.stopping:
                continue
            gated = True
            words = lease.grant_words
            if any(pools[index].connected for index in lease.places):
                words[WANTED] = max(words[WANTED], words[SPENT] + words[RETURNED] + lease.claimed)
            pool = self._walk.activate(lease)
            if pool is not None:
                self._walk.pump(pool)
        if gated and not self._pacing:
            self._pacing = True
            self._loop.call_later(PACE_S, self._pace_again)

    def _pace_again(self) -> None:
        self._pacing = False
        self._pace()

    def _wanted_relays(self) -> set[int]:
        """Relays that somebody needs a connection to."""
        wanted = set()
        for lease in self._leases:
            if not lease.stopping and (lease.claimed or lease.left or not lease.in_flight):
                wanted.add(lease.pace.relay if lease.gated and lease.pace.left else lease.relay)
        return wanted

    # The end.

    async def drain(self, now: bool) -> None:
        """Give all leases back; `now`: without waiting for replies."""
        self._draining = True
        if now:
            self._abort()
        for lease in self._leases:
            if not lease.leaving:
                lease.leaving = True
                self._stop(lease)
        self._soon()
        try:
            await asyncio.wait_for(self._empty.wait(), DRAIN_S)
        except TimeoutError:
            self._abort()
            await self._empty.wait()
        for pool in self._walk.pools:
            pool.close()
        deadline = self._loop.time() + FAREWELL_S
        while any(pool.connected for pool in self._walk.pools) and self._loop.time() < deadline:
            await asyncio.sleep(TICK_S)
        if self._ended:
            return  # an impatient drain overtook this one
        self._ended = True
        self._abort()
        self._leases.end()
        self._alarm.close()
        self._disk.shutdown()

    def _abort(self) -> None:
        for pool in self._walk.pools:
            pool.abort()


def main(boot: Boot) -> None:
    """The process's way in (`broker/process.py` names it)."""
    runtime.run(boot, Sender)
