"""How the broker begins, whatever came before: a clean stop, a crash of anything, or a power loss.

There is no other path: a clean start finds nothing to mend. In order: end what an earlier broker left running, remove
its shared memory, wait until no actor can be alive, then bring every unfinished shard to rest.

Invariants
- No ledger is touched before `actors.lock` was held alone.
- A shard whose header says `closed_epoch == open_epoch` is believed, unless the boot id shows a power loss since;
  any other is recounted from its rows, and what was in flight becomes UNCERTAIN.
"""

import contextlib
import os
import signal
from collections.abc import Sequence
from typing import Any

from broker.contract.boot import process_starttime
from broker.contract.errors import EcmError
from broker.contract.log import log
from broker.contract.paths import StateDir
from broker.custody import Custody
from broker.locks import actors_gone
from broker.running import ShardState
from shm.arena import Arena
from shm.files.ledger import Policy, Recovered
from shm.live.heartbeat import Heartbeats, Kind

__all__ = ["Recovery", "end_orphans"]

ORPHANS_S = 5.0  # SIGKILL ends a process at once; a core dump or a stuck disk may take a little


def end_orphans(state: StateDir) -> None:
    """End what an earlier broker of this directory left behind, and remove its arena. Needs `broker.lock`.

    Raises EcmError busy if an actor lives on that cannot be ended.
    """
    try:
        name = state.arena_name.read_text().strip()
    except FileNotFoundError:
        name = ""
    if name:
        _kill_actors(name)
    if not actors_gone(state, wait_s=ORPHANS_S):
        raise EcmError(
            "busy",
            "an actor of an earlier engine still holds this state directory and cannot be ended",
            file=str(state.actors_lock),
            hint="`fuser -v` on that file names it",
        )
    if name:
        Arena.unlink(name)
        state.arena_name.unlink(missing_ok=True)
    for path in state.run.iterdir() if state.run.is_dir() else ():
        path.unlink()


def _kill_actors(arena_name: str) -> None:
    try:
        arena = Arena.attach(arena_name)
    except (OSError, ValueError):
        return  # never made, made in another layout, or gone with a reboot: the lock still tells of survivors
    try:
        for row in Heartbeats(arena).rows():
            if row.pid and row.pid != os.getpid() and row.starttime and process_starttime(row.pid) == row.starttime:
                log.warning("orphan ended", pid=row.pid, kind=Kind(row.kind).name.lower())
                with contextlib.suppress(ProcessLookupError):  # it may have ended by itself in between
                    os.kill(row.pid, signal.SIGKILL)
    finally:
        arena.close()


class Recovery:
    """Brings shards to rest. Its methods run in the files thread."""

    def __init__(self, custody: Custody, boot_id: str, now_s: int) -> None:
        self._custody = custody
        self._boot_id = boot_id
        self._now_s = now_s

    def shards(self, campaign: int, rows: Sequence[Any], policy: Policy) -> list[ShardState]:
        """Every shard of a campaign, idle and counted. `rows`: the store's (number, group, rows)."""
        return [self._shard(campaign, row, policy) for row in rows]

    def _shard(self, campaign: int, row: Any, policy: Policy) -> ShardState:
        ledger = self._custody.open(campaign, row.number)
        try:
            power_lost = ledger.boot_id not in ("", self._boot_id)
            if power_lost or (ledger.open_epoch and not ledger.is_closed):
                found = ledger.recover(power_lost=power_lost, policy=policy, now_s=self._now_s)
                if found != Recovered():
                    log.warning("shard recovered", campaign=campaign, shard=row.number, uncertain=found.uncertain)
            counts = ledger.summary() or ledger.count()
            return ShardState(row.number, row.group, row.rows, counts)
        finally:
            ledger.close()
