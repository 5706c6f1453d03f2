"""Leases: how a shard is handed to a sender, watched, and taken back. Mechanism only; `scheduler` says who is next.

Invariants
- A shard's ledger has one writer: the holder of its lease, or the broker while it is idle.
- A shard is leased again only after its holder returned it (its `done` word shows the lease's number) or its
  process is proven dead. Silence is never enough.
- A sender that dies convicts a row only if that row was being composed or sent, alone. If none was, the shard rests,
  and after a few such deaths its campaign waits and is tried now and then, until a relay answers for somebody.
- A lease number is used once. An actor row's slot is free only when the broker has read the last of its counters.
- No file is touched on the loop: ledgers are opened, recovered and counted in the files thread.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from broker.contract.errors import plainly
from broker.contract.log import log
from broker.custody import CLEARED_ROWS, POISON_DEATHS, SUSPECT_DEATHS, Custody, Returned
from broker.running import Lease, Phase, Running, ShardState
from shm.files.durable import FileFault
from shm.live.counters import CounterTable
from shm.live.counters import Counts as Counters
from shm.live.leases import LeaseTable, pack_order

__all__ = ["CANCEL", "RETURN", "RUN", "Leases", "Pacing", "Totals"]

RUN, RETURN, CANCEL = 1, 2, 3
REST_S, REST_S_MAX = 5.0, 300.0  # before a shard is leased again whose lease could not be worked; doubles
CRASH_S, CRASH_S_MAX = 1.0, 60.0  # the same after its holder died and no row was at fault
CRASHES_TOLD = 3  # such deaths over one shard, after which its campaign waits and says why
DISK_RETRY_S = 2.0  # between tries to write what a failing disk did not take

_T = TypeVar("_T")
Work = Callable[[Callable[[], Any]], Awaitable[Any]]


class Pacing(Protocol):
    """What a lease needs of the rate windows (`broker/pacing.py`)."""

    def opened(self, lease: Lease) -> None:
        """A lease begins: from now on its windows may be charged for it."""

    def closed(self, lease: Lease, *, dead: bool) -> None:
        """A lease ended; what a dead holder did not spend counts as spent."""


@dataclass(slots=True)
class Totals:
    """Events since the engine started, over leases that have ended (`ctl stats` adds those under way)."""

    attempted: int = 0
    sent: int = 0
    deferred: int = 0
    bounced: int = 0
    failed: int = 0
    uncertain: int = 0
    suppressed: int = 0

    def add(self, counts: Counters) -> None:
        """Add the counters of one lease."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(counts, name))


class Leases:
    """All leases that are out. `on_return` is called once a shard is idle again, `on_fault` when a disk fails."""

    def __init__(
        self,
        table: LeaseTable,
        counters: CounterTable,
        custody: Custody,
        work: Work,
        pacing: Pacing,
        wake: Callable[[int], None],
        now_s: Callable[[], int],
        on_return: Callable[[Lease], None],
        on_fault: Callable[[Running, str], None],
        slots: int,
    ) -> None:
        self._table = table
        self._counters = counters
        self._custody = custody
        self._work = work
        self._pacing = pacing
        self._wake = wake
        self._now_s = now_s
        self._on_return = on_return
        self._on_fault = on_fault
        self._slots = slots
        self._next_number = 1
        self.open: dict[int, Lease] = {}
        self._taken: set[tuple[int, int]] = set()  # (row, slot)
        self.totals = Totals()

    def load(self, row: int) -> dict[int, int]:
        """Leases of each campaign that the actor of `row` holds."""
        loads: dict[int, int] = {}
        for lease in self.open.values():
            if lease.row == row:
                loads[lease.campaign.id] = loads.get(lease.campaign.id, 0) + 1
        return loads

    async def offer(
        self,
        campaign: Running,
        shard: ShardState,
        row: int,
        *,
        relay: int,
        gated: bool,
        retry: bool,
        routes: tuple[tuple[int, int], ...] = (),
    ) -> None:
        """Lease an idle shard to the actor of `row`. Returns when the offer stands in shared memory.

        relay    the one it uses, or begins with;  routes  those of a pool, of which each slice uses one
        """
        assert shard.phase is Phase.IDLE, "only an idle shard is the broker's to give"
        slot = next((s for s in range(self._slots) if (row, s) not in self._taken), None)
        if slot is None:
            campaign.file(shard)
            return
        self._taken.add((row, slot))
        shard.phase = Phase.BUSY
        campaign.busy += 1
        number, self._next_number = self._next_number, self._next_number + 1
        try:
            ledger, epoch = await self._work(lambda: self._custody.hand_over(campaign.id, shard.number, row))
        except (OSError, FileFault) as error:
            self._taken.discard((row, slot))
            shard.phase = Phase.IDLE
            self._on_fault(campaign, plainly(error))
            campaign.file(shard)
            return
        finally:
            campaign.busy -= 1
        shard.phase = Phase.LEASED
        action = RUN
        if campaign.cancelling or campaign.state == "paused":  # said while the ledger was being opened
            action = CANCEL if campaign.cancelling else RETURN
        lease = Lease(
            number,
            campaign,
            shard,
            row,
            slot,
            epoch,
            ledger,
            gated,
            relay,
            retry,
            action,
            time.monotonic(),
            routes=routes,
        )
        campaign.unsettle(shard)
        campaign.leases[number] = lease
        self.open[number] = lease
        self._pacing.opened(lease)
        self._table.offer(row, slot, number, campaign.id, shard.number, epoch, _order_of(lease))
        self._wake(row)

    def order(self, lease: Lease, action: int, *, gated: bool | None = None) -> None:
        """Change a lease's order word; the holder reads it before its next write."""
        if gated is not None:
            lease.gated = gated
        lease.action = action
        self._table.set_order(lease.row, lease.slot, _order_of(lease))
        if action != RUN:
            lease.ordered = time.monotonic()  # after the store: a loop that turns later meets the order
        self._wake(lease.row)

    def poll(self) -> list[Lease]:
        """Leases whose holder says it is done with them; each is named once."""
        done = []
        for lease in self.open.values():
            if lease.shard.phase is not Phase.LEASED:
                continue
            if self._table.acknowledged(lease.row, lease.slot)[1] == lease.number:
                lease.shard.phase = Phase.BUSY
                lease.campaign.busy += 1
                done.append(lease)
                continue
            if lease.shard.deaths >= SUSPECT_DEATHS and lease.action == RUN:
                self._acquit(lease)
            if lease.campaign.crash:
                self._works(lease)
        return done

    def _acquit(self, lease: Lease) -> None:
        """End the row at a time of a shard that has come past the rows under suspicion."""
        counts = self._counted(lease)
        if counts is not None and counts.attempted >= CLEARED_ROWS:
            lease.shard.deaths = 0
            self.order(lease, RUN)

    def holder_died(self, row: int, how: str = "") -> list[Lease]:
        """The holder of `row` is proven dead: its offers are wiped before another process may read them.

        Returns its leases, which the caller passes to `take_back(dead=True)`.
        how   what is known of its death, for people
        """
        leases = [lease for lease in self.of_row(row) if lease.shard.phase is Phase.LEASED]
        for lease in leases:
            lease.shard.phase = Phase.BUSY
            lease.campaign.busy += 1
            lease.death, lease.at_hand = how, self._counters.at_hand(lease.row, lease.slot, lease.number)
            self._table.free(lease.row, lease.slot)
        named = any(lease.at_hand is not None for lease in leases)
        for lease in leases:
            lease.cleared = named and lease.at_hand is None
        return leases

    async def take_back(self, lease: Lease, *, dead: bool) -> None:
        """Finish a lease whose holder returned it (`dead=False`) or is proven dead, and settle its shard."""
        campaign, shard = lease.campaign, lease.shard
        assert shard.phase is Phase.BUSY, "`poll` or `holder_died` took it off its holder"
        # Wiped before anything is waited for: a sender that is started in the holder's place must not take it up.
        self._table.free(lease.row, lease.slot)
        self._pacing.closed(lease, dead=dead)
        returned = await self._settled(lease, dead=dead)
        shard.deaths = returned.deaths
        if not dead:
            self._works(lease)
        elif not returned.convicted and not lease.cleared:
            self._crashed(lease)
        self._fold(lease)  # in the same turn as it leaves `open`, or it would be counted twice
        self._taken.discard((lease.row, lease.slot))
        del self.open[lease.number]
        del campaign.leases[lease.number]
        campaign.settle(shard, returned.counts)
        if time.monotonic() >= shard.rests_until:
            shard.failures, shard.rests_until = 0, 0.0
        shard.phase = Phase.IDLE
        campaign.busy -= 1
        campaign.file(shard)
        await self._work(lease.ledger.close)  # after any count that was asked for while the lease was out
        self._on_return(lease)

    async def _settled(self, lease: Lease, *, dead: bool) -> Returned:
        """What a lease came to, as soon as the disk takes it; till then the campaign waits and says why."""
        while True:
            try:
                settle = partial(self._custody.settle, lease, dead=dead, now_s=self._now_s())
                returned: Returned = await self._work(settle)
            except (OSError, FileFault) as error:
                self._on_fault(lease.campaign, plainly(error))
                await asyncio.sleep(DISK_RETRY_S)
            else:
                return returned

    def _fold(self, lease: Lease) -> None:
        counts = self._counted(lease)
        if counts is None:
            return
        self.totals.add(counts)
        lease.campaign.tally = lease.campaign.tally.plus(counts)
        lease.campaign.passed += counts.attempted / lease.campaign.weight

    def live(self) -> dict[int, Counters]:
        """Counters of each lease that is out, by lease number."""
        return {lease.number: counts for lease in self.open.values() if (counts := self._counted(lease)) is not None}

    def counted(self, leases: Iterable[Lease]) -> list[Counters]:
        """Counters of some leases that are out."""
        return [counts for lease in leases if (counts := self._counted(lease)) is not None]

    def _counted(self, lease: Lease) -> Counters | None:
        row = self._counters.read(lease.row, lease.slot)
        return row[1] if row is not None and row[0] == lease.number else None

    def work(self) -> dict[int, set[int]]:
        """Relays that the leases of each row may use."""
        work: dict[int, set[int]] = {}
        for lease in self.open.values():
            work.setdefault(lease.row, set()).update(lease.relays)
        return work

    def failed(self, lease: Lease) -> None:
        """Its holder could not work it: the shard rests before it is leased again, longer each time."""
        shard = lease.shard
        shard.failures += 1
        shard.rests_until = time.monotonic() + _rest_s(shard.failures, REST_S, REST_S_MAX)

    def _crashed(self, lease: Lease) -> None:
        """Its holder died, and no row was at fault: a suspect shard rests; in the end the campaign waits."""
        campaign, shard, now = lease.campaign, lease.shard, time.monotonic()
        if shard.deaths >= POISON_DEATHS:
            shard.failures += 1
            shard.rests_until = now + _rest_s(shard.failures, CRASH_S, CRASH_S_MAX)
            if shard.failures >= CRASHES_TOLD and not campaign.crash:
                campaign.crash = lease.death
                log.error("senders crash", campaign=campaign.id, reason=lease.death)
        if campaign.crash and now >= campaign.probed_from:
            campaign.crash = lease.death
            campaign.crashes += 1
            campaign.probed_from = now + _rest_s(campaign.crashes, CRASH_S, CRASH_S_MAX)

    def _works(self, lease: Lease) -> None:
        """End the wait of a campaign whose senders crashed, once a relay has answered under a lease."""
        counts = self._counted(lease)
        if counts is not None and counts.sent + counts.bounced + counts.deferred:
            lease.campaign.crash, lease.campaign.crashes, lease.campaign.probed_from = "", 0, 0.0

    def of_row(self, row: int) -> list[Lease]:
        """Leases that the actor of `row` holds."""
        return [lease for lease in self.open.values() if lease.row == row]


def _rest_s(failures: int, first_s: float, most_s: float) -> float:
    """Seconds to rest after so many failures in a row, from 1: doubling up to `most_s`."""
    return min(first_s * 2.0 ** min(failures - 1, 16), most_s)


def _order_of(lease: Lease) -> int:
    rows_max = 1 if lease.shard.deaths >= SUSPECT_DEATHS else 0
    return pack_order(
        lease.action,
        gated=lease.gated,
        rows_max=rows_max,
        relay=lease.relay,
        retry=lease.retry,
        weight=lease.campaign.weight,
    )
