"""Who was suppressed while a campaign had ended: applied by the broker before such a campaign is lent again.

The arena's log of suppressions begins with the oldest campaign that was under way when the engine started. One that had
ended then needs changes from before. They are read from the store, applied to who is to be mailed, and the bundle says
from then on that its suppressions are known up to there; the log has everything later.

Invariants
- The bundle's position moves only after every ledger has what came before it; a crash in between is harmless, since a
  start builds the log from the position that the store knows, which moves last.
- Of several changes for one address the last one counts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from broker.arena_tables import Tables
from broker.contract.paths import StateDir
from broker.custody import Custody
from broker.running import ShardState
from broker.store import suppression as store_suppression
from broker.store.suppression import ADD, Changes
from shm.files import bundle as bundle_file
from shm.files.ledger import Counts, States
from shm.files.ledger_idle import suppress_idle
from shm.files.ledger_words import rows_in
from shm.files.shard import Shard

__all__ = ["Silencing", "silence"]

Keys = npt.NDArray[np.uint64]  # (people, 2)


class Silencing(Protocol):
    """What this module needs of the engine."""

    state: StateDir
    instance: str
    tables: Tables

    def work(self, function: Callable[[], Any]) -> Awaitable[Any]: ...
    def store_call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]: ...
    def now_s(self) -> int: ...


async def silence(engine: Silencing, custody: Custody, campaign: int, shards: Sequence[ShardState]) -> int | None:
    """Suppress who is still to be mailed and was suppressed before the arena's log begins; counts follow.

    Answers the position up to which that is done, None if the log has everything anyhow. Raises OSError, FileFault.
    """
    path = engine.state.bundle(campaign)
    bundle = await engine.work(partial(bundle_file.read, path, instance=engine.instance, campaign=campaign))
    position: int = bundle.suppressed_position
    if position + 1 >= engine.tables.suppressed.first_position:
        return None
    people = {}
    for shard in shards:
        if shard.counts.pending or shard.counts.deferred:
            people[shard.number] = await engine.work(partial(_people, engine, custody, campaign, shard.number))
    keys = np.concatenate([found for _, found in people.values()]) if people else np.empty((0, 2), np.uint64)
    last: dict[bytes, int] = {}
    while len(changes := await engine.store_call(store_suppression.changes_since, position)):
        await engine.work(partial(_note, changes, keys, last))
        position = changes.last
    silenced = {key for key, op in last.items() if op == ADD}
    for shard in shards:
        rows, found = people.get(shard.number, (None, None))
        if rows is not None and found is not None:
            mine = rows[[key.tobytes() in silenced for key in found]]
            if len(mine):
                change = partial(_suppress, custody, campaign, shard.number, mine, engine.now_s())
                shard.counts = await engine.work(change)
    await engine.work(partial(bundle_file.write, path, replace(bundle, suppressed_position=position)))
    return position


def _people(engine: Silencing, custody: Custody, campaign: int, number: int) -> tuple[npt.NDArray[np.int64], Keys]:
    """Rows of a shard that are to be mailed, and their keys."""
    ledger = custody.open(campaign, number)
    rows = rows_in(ledger.words(), (States.PENDING, States.DEFERRED))
    ledger.close()
    path = engine.state.shard(campaign, number)
    shard = Shard.open(path, instance=engine.instance, campaign=campaign, shard=number)
    keys = shard.keys[rows]
    shard.close()
    return rows, keys


def _note(changes: Changes, keys: Keys, last: dict[bytes, int]) -> None:
    """Remember the last change of each key that is one of `keys`."""
    theirs = changes.keys.view(np.uint64).reshape(-1, 2)
    # One word of a key finds the few candidates; both words decide.
    near = np.flatnonzero(np.isin(theirs[:, 0], keys[:, 0]))
    for key, op in zip(theirs[near], changes.ops[near].tolist(), strict=True):
        last[key.tobytes()] = op


def _suppress(custody: Custody, campaign: int, number: int, rows: npt.NDArray[np.int64], now_s: int) -> Counts:
    ledger = custody.open(campaign, number)
    try:
        suppress_idle(ledger, rows, now_s)
        return ledger.summary() or ledger.count()
    finally:
        ledger.close()
