"""A shard's ledger in the broker's hands: handed over to a holder, taken back, rewritten where a disk failed.

Runs in the files thread. The broker is the leaseholder of every shard it has not leased out, so these are its writes.

Invariants
- A ledger that was given back with a true summary is believed; any other is recovered.
- A failed fdatasync is final for that file, since the kernel has forgotten what it could not write: the rows are
  copied out of the mapping and written to a new file, and nothing in it counts as durable that was being sent.
- A function that raises OSError changed nothing that a later try would not do again.
"""

from dataclasses import dataclass

from broker.contract.log import log
from broker.contract.paths import StateDir
from broker.running import Lease
from shm.files.ledger import Counts, Ledger, Policy
from shm.files.ledger_idle import at_fault

__all__ = ["CLEARED_ROWS", "POISON_DEATHS", "SUSPECT_DEATHS", "Custody", "Returned", "deaths_after"]

SUSPECT_DEATHS = 2  # a shard whose holders died this often is leased alone, a row at a time
POISON_DEATHS = 3  # one more death under such a lease convicts the row that was being composed or sent
CLEARED_ROWS = 256  # a row that kills is among the first a new holder takes up: after so many attempts it is not there


@dataclass(frozen=True, slots=True)
class Returned:
    """What a shard came to when its lease ended.

    deaths     suspicious ones so far, this one included
    convicted  rows that its holder died of
    """

    counts: Counts
    deaths: int
    convicted: int = 0


def deaths_after(deaths: int, attempted: int, *, dead: bool) -> int:
    """Suspicious deaths over a shard, `deaths` before a lease under which so many messages were attempted.

    A holder that made progress and came back clears it. One that died is the shard's doing only if it died early: a
    process that is killed from outside, even several times, must not make a shard of 10,000 rows crawl.
    """
    if not dead:
        return 0 if attempted else deaths
    return 1 if attempted >= CLEARED_ROWS else deaths + 1


class Custody:
    """Opens, settles and rewrites ledgers of one instance."""

    def __init__(self, state: StateDir, instance: str, boot_id: str) -> None:
        self._state = state
        self._instance = instance
        self._boot_id = boot_id

    def open(self, campaign: int, shard: int) -> Ledger:
        """A ledger of which the broker is the holder. Raises OSError, FileFault."""
        path = self._state.ledger(campaign, shard)
        return Ledger.open(path, instance=self._instance, campaign=campaign, shard=shard, writable=True)

    def hand_over(self, campaign: int, shard: int, row: int) -> tuple[Ledger, int]:
        """Open a shard's ledger for a new lease of the actor of `row`; returns it and the epoch."""
        ledger = self.open(campaign, shard)
        try:
            epoch = ledger.open_epoch + 1
            ledger.open_lease(epoch, row, self._boot_id)
        except BaseException:
            ledger.close()
            raise
        return ledger, epoch

    def settle(self, lease: Lease, *, dead: bool, now_s: int) -> Returned:
        """Bring a returned or orphaned ledger to rest and read what it came to."""
        attempted = lease.ledger.count().attempts - lease.shard.counts.attempts
        deaths = deaths_after(lease.shard.deaths, attempted, dead=dead and not lease.cleared)
        policy: Policy = "hold" if lease.campaign.cancelling else lease.campaign.uncertain
        convicted = 0
        if dead:
            suspect = deaths >= POISON_DEATHS and not lease.cleared
            poison = at_fault(lease.ledger, lease.at_hand) if suspect else []
            found = lease.ledger.recover(power_lost=False, policy=policy, now_s=now_s, poison=poison)
            convicted = found.poisoned
            log.warning(
                "shard recovered", campaign=lease.campaign.id, shard=lease.shard.number,
                uncertain=found.uncertain, resent=found.resent, poisoned=found.poisoned,
            )  # fmt: skip
        elif lease.ledger.summary() is None:
            self._rewrite(lease)
            lease.ledger.recover(power_lost=True, policy=policy, now_s=now_s)
        if lease.campaign.cancelling:
            lease.ledger.cancel_idle(now_s)
        return Returned(lease.ledger.summary() or lease.ledger.count(), deaths, convicted)

    def _rewrite(self, lease: Lease) -> None:
        """Put the rows of a ledger whose holder met a failing disk into a new file."""
        old = lease.ledger
        Ledger.restore(old.path, old.image())
        lease.ledger = self.open(lease.campaign.id, lease.shard.number)
        old.close()
        log.warning("ledger rewritten", campaign=lease.campaign.id, shard=lease.shard.number)
