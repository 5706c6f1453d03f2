"""The leases of one sender: offered by the table, opened, held, given back.

Mechanism only: what a held lease does is the actor's to say.  Files are opened in one thread, synced and closed in
another, so that the loop never waits for a disk and no lease is closed before a sync that it takes part in.

- The lease table is the truth; messages only wake.  A number its slot does not show is ignored.
- A lease is given back once, with everything of it durable or with the reason why it is not.
- Of a campaign nothing is kept open once its last lease is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from actors.runtime import Context
from actors.sender.commit import Chunks, Traces
from actors.sender.handover import Handover, LeaseFault, close_lease
from actors.sender.lease import Lease, Offer
from actors.sender.pace import Gap
from shm.live.leases import LeaseTable

__all__ = ["Leases"]

GAP_KEPT_NS: Final = 3_600_000_000_000  # how long the last attempt of a campaign is remembered after its last lease


class Leases:
    """Leases by slot.

    opened  called with a lease whose files are open
    closed  called when one has been given back
    """

    def __init__(
        self,
        ctx: Context,
        table: LeaseTable,
        handover: Handover,
        disk: ThreadPoolExecutor,
        opened: Callable[[Lease], None],
        closed: Callable[[], None],
    ) -> None:
        self._ctx = ctx
        self._loop = asyncio.get_running_loop()
        self._row = ctx.boot.row
        self._table = table
        self._handover = handover
        self._files = ThreadPoolExecutor(1, "files")
        self._disk = disk
        self._on_opened = opened
        self._on_closed = closed
        name = f"{ctx.boot.kind}-{ctx.boot.index}"
        traced = ctx.boot.settings["engine"]["trace"]
        self._traces = Traces(ctx.state.trace, name, ctx.boot.start_id) if traced else None
        self._held: dict[int, Lease] = {}  # by slot, those being closed too
        self._opening: dict[int, Offer] = {}  # by slot
        self._finished: dict[int, int] = {}  # slot -> number last given back
        self._gaps: dict[int, Gap] = {}  # by campaign

    def __bool__(self) -> bool:
        """Whether any is held or about to be."""
        return bool(self._held or self._opening)

    def __iter__(self) -> Iterator[Lease]:
        """Those that are held and not being closed."""
        return iter([lease for lease in self._held.values() if not lease.closing])

    def scan(self) -> None:
        """Take what the table offers and we neither hold nor have given back."""
        for slot, number, campaign, shard, epoch, order in self._table.scan(self._row):
            opening = self._opening.get(slot)
            busy = slot in self._held or (opening is not None and opening.number == number)
            if not busy and self._finished.get(slot) != number:
                self._take(Offer(slot, number, campaign, shard, epoch, order))

    def _take(self, offer: Offer) -> None:
        self._opening[offer.slot] = offer
        self._table.take(self._row, offer.slot, offer.number)
        self._ctx.send({"type": "lease.taken", "number": offer.number})
        gap = self._gaps.setdefault(offer.campaign, Gap())
        future = self._loop.run_in_executor(self._files, self._handover.open_lease, offer, gap)
        future.add_done_callback(lambda done: self._opened(offer, done))

    def _opened(self, offer: Offer, opened: asyncio.Future[Lease]) -> None:
        del self._opening[offer.slot]
        error = opened.exception()
        if isinstance(error, (LeaseFault, OSError)):
            self._give_back(offer, str(error))
            self._forget(offer.campaign)
            self._on_closed()
            return
        lease = opened.result()
        self._held[offer.slot] = lease
        try:
            if self._traces is not None:
                lease.trace = self._traces.buffer(offer.campaign)
        except OSError as fault:
            lease.fail(f"the trace cannot be kept: {fault.strerror}")
            self.close(lease)
            return
        self._on_opened(lease)

    def close(self, lease: Lease) -> None:
        """Give a lease back that has nothing claimed and nothing in flight."""
        lease.closing = True
        traces = self.take_traces()  # whoever hears of the end may look at them
        future = self._loop.run_in_executor(self._disk, close_lease, lease, self._ctx.clock, traces)
        future.add_done_callback(lambda done: self._closed(lease, done.result()))

    def _closed(self, lease: Lease, fault: str) -> None:
        del self._held[lease.offer.slot]
        self._forget(lease.offer.campaign)
        self._give_back(lease.offer, fault)
        self._on_closed()

    def _forget(self, campaign: int) -> None:
        """Keep nothing of a campaign whose last lease is gone, but for a while when its last message left."""
        needed = {lease.offer.campaign for lease in self._held.values()}
        needed.update(offer.campaign for offer in self._opening.values())
        if campaign in needed:
            return
        if self._traces is not None:
            descriptor = self._traces.forget(campaign)
            if descriptor is not None:
                self._disk.submit(Traces.close_one, descriptor)  # behind what the thread may still have to write
        oldest_ns = time.monotonic_ns() - GAP_KEPT_NS
        for old in [old for old, gap in self._gaps.items() if old not in needed and gap.last_ns < oldest_ns]:
            del self._gaps[old]

    def _give_back(self, offer: Offer, fault: str) -> None:
        self._finished[offer.slot] = offer.number
        self._table.done(self._row, offer.slot, offer.number)
        if fault:
            self._ctx.fault(f"campaign {offer.campaign}, shard {offer.shard}: {fault}")
            self._ctx.log.error("lease failed", campaign=offer.campaign, shard=offer.shard, reason=fault)
            self._ctx.send({"type": "lease.failed", "number": offer.number, "reason": fault})
        else:
            self._ctx.send({"type": "lease.done", "number": offer.number})

    def take_traces(self) -> Chunks:
        """What has gathered of attempts, to be appended to trace files."""
        return [] if self._traces is None else self._traces.take()

    def end(self) -> None:
        """Let go of threads and trace files; nothing may be held."""
        if self._traces is not None:
            self._traces.close()
        self._files.shutdown()
