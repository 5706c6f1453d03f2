"""Taking a lease's files over from the broker, and giving them back.

Everything here runs off the loop, in one thread each for `open_lease` and `close_lease`: files may be slow.  No
message is sent here.

- A lease is opened only on files that name this instance, campaign and shard.
- Before the first row is claimed, every suppression since the snapshot has been applied.
- A lease is given back with nothing claimed or in flight, its rows synced before its summary, its summary before the
  broker hears of it.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from pathlib import Path
from typing import Final

from actors.message.compose import Composer
from actors.sender.commit import Chunks, write_traces
from actors.sender.lease import Lease, Offer
from actors.sender.pace import Gap, Pace
from actors.sender.retry import RetryPolicy
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from shm.arena import Arena
from shm.files import bundle as bundle_file
from shm.files.bundle import Bundle
from shm.files.durable import FileFault
from shm.files.ledger import Ledger
from shm.files.replies import Replies
from shm.files.shard import Shard
from shm.live.clock import EngineClock
from shm.live.counters import CounterTable
from shm.live.grants import GrantTable
from shm.live.leases import LeaseTable
from shm.live.suppressed import SuppressionReader

__all__ = ["Handover", "LeaseFault", "close_lease"]

CAMPAIGNS_MAX: Final = 16  # compiled campaigns kept beside those in use: each takes some times its templates' size


class LeaseFault(Exception):  # noqa: N818  of a lease, as FileFault is of a file
    """A lease that cannot be worked; one line says why."""


class Handover:
    """Opens leases of one sender."""

    def __init__(self, arena: Arena, state: StateDir, instance: str, row: int, relay_names: list[str]) -> None:
        self._state = state
        self._instance = instance
        self._row = row
        self._clock = EngineClock.attach(arena)
        self._suppression = SuppressionReader(arena)  # our own: it maps segments, and the loop's reader does too
        self._counters = CounterTable(arena)
        self._grants = GrantTable(arena)
        self._leases = LeaseTable(arena)
        self.relay_names = relay_names
        self._campaigns: OrderedDict[tuple[int, int, int], tuple[Bundle, Composer]] = OrderedDict()

    def open_lease(self, offer: Offer, gap: Gap) -> Lease:
        """Open an offered lease's files and bring its rows up to date.  Raises LeaseFault; then nothing is open."""
        with contextlib.ExitStack() as opened:  # closed again if the lease does not come about
            bundle, composer, shard, ledger = self._open_files(offer, opened)
            replies = Replies(self._state.replies(offer.campaign, offer.shard))
            opened.callback(replies.close)
            lease = Lease(
                offer=offer,
                bundle=bundle,
                composer=composer,
                shard=shard,
                ledger=ledger,
                replies=replies,
                policy=RetryPolicy.from_maps(bundle.retry, bundle.spec.get("give_up_s"), offer.campaign, offer.shard),
                places=self._places(bundle),
                resend=bundle.spec.get("uncertain", "resend") == "resend",
                suppressed_seen=0,
                keys=shard.keys.tobytes(),
                words=self._counters.open(self._row, offer.slot, offer.number),
                grant_words=self._grants.accept(self._row, offer.slot, offer.number),
                pace=Pace(gap),
                order_now=self._leases.order_word(self._row, offer.slot),
            )
            lease.obey(offer.order)
            self._suppress(lease)
            opened.pop_all()
        return lease

    def _open_files(self, offer: Offer, opened: contextlib.ExitStack) -> tuple[Bundle, Composer, Shard, Ledger]:
        state, campaign, number = self._state, offer.campaign, offer.shard
        try:
            bundle, composer = self._campaign(campaign)
            shard = Shard.open(state.shard(campaign, number), instance=self._instance, campaign=campaign, shard=number)
            opened.callback(shard.close)
            ledger = Ledger.open(
                state.ledger(campaign, number), instance=self._instance, campaign=campaign, shard=number, writable=True
            )
            opened.callback(ledger.close)
        except OSError as error:
            raise LeaseFault(f"{Path(error.filename or '').name}: {error.strerror}") from error
        except (FileFault, EcmError) as error:
            raise LeaseFault(str(error)) from error
        if ledger.rows != shard.rows or ledger.open_epoch != offer.epoch:
            raise LeaseFault(f"{ledger.path.name}: {ledger.rows} rows of epoch {ledger.open_epoch}, not as offered")
        return bundle, composer, shard, ledger

    def _suppress(self, lease: Lease) -> None:
        try:
            index = self._suppression.index_after(lease.bundle.suppressed_position)
        except ValueError as error:
            raise LeaseFault(f"suppressions since the snapshot are not at hand: {error}") from error
        for entries in self._suppression.since(index):
            lease.suppress(entries, self._clock.now_s())
            index += len(entries)
        lease.suppressed_seen = index

    def _places(self, bundle: Bundle) -> dict[int, int]:
        """Index in the relay table -> index in the bundle, for the relays that the settings still know."""
        names = self.relay_names
        return {names.index(name): place for place, (name, _) in enumerate(bundle.relays) if name in names}

    def _campaign(self, campaign: int) -> tuple[Bundle, Composer]:
        """The bundle and its composer, kept: compiling templates takes milliseconds, a lease a second."""
        path = self._state.bundle(campaign)
        status = os.stat(path)  # noqa: PTH116  a launch writes a new file
        known = (campaign, status.st_ino, status.st_mtime_ns)
        if known not in self._campaigns:
            bundle = bundle_file.read(path, instance=self._instance, campaign=campaign)
            self._campaigns[known] = bundle, Composer.from_bundle(bundle)
            if len(self._campaigns) > CAMPAIGNS_MAX:
                self._campaigns.popitem(last=False)
        self._campaigns.move_to_end(known)
        return self._campaigns[known]


def close_lease(lease: Lease, clock: EngineClock, traces: Chunks) -> str:
    """Make everything durable, write the summary, close the epoch and the files; returns the fault, or "".

    traces  what has gathered of attempts: written first, so that whoever hears of the end may look at them
    With a fault the epoch stays open, so that the broker counts the rows itself.
    """
    write_traces(traces)
    first_ns, last_ns = lease.first_attempt_ns, lease.last_conclusion_ns
    try:
        if not lease.fault:
            lease.replies.flush()
            lease.replies.sync()
            lease.ledger.sync()
            lease.ledger.close_lease(
                lease.offer.epoch, first_ns and clock.at_ns(first_ns), last_ns and clock.at_ns(last_ns)
            )
            lease.ledger.sync()
    except OSError as error:
        lease.fault = f"{lease.ledger.path.name}: {error.strerror}"
    with contextlib.suppress(OSError):  # flushed above, or the fault is known
        lease.replies.close()
    lease.ledger.close()
    lease.shard.close()
    return lease.fault
