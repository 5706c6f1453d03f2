"""Suppressing people while campaigns run: first the store commits, then the arena's log tells every sender.

A sender compares the log's count before each write, so mail not yet sent stops within a second and nobody asks a
database (design: `shm/live/suppressed.py`).

Invariants
- An entry is in the log only after the store committed its change, and in the order of positions, without a gap.
- What the store has and the log has not (a death in between, shared memory that was full) is appended before
  anything newer is.
- An import holds the store's thread for one batch at a time; a change of one row waits for at most one of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from broker.addressfile import AddressFile, Batch, Chunk, entry_of
from broker.contract.errors import EcmError
from broker.events import EventBus
from broker.jobs import Jobs, Progress
from broker.store import suppression as store_suppression
from broker.store.suppression import BATCH_ROWS, Changes, Entry
from shm.arena import Arena, ShmFull
from shm.live.suppressed import ENTRY, Entries, SuppressionLog

__all__ = ["IMPORT_KIND", "Suppression"]

IMPORT_KIND = "suppress.import"
ADDRESSES_TOLD_MAX = 100  # of one event: it names people who were dealt with singly, not a whole file


class _Tables(Protocol):
    arena: Arena


class _Engine(Protocol):
    """What this module needs of the engine."""

    @property
    def tables(self) -> _Tables: ...
    @property
    def events(self) -> EventBus: ...
    @property
    def jobs(self) -> Jobs: ...
    def store_call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]: ...
    def now_s(self) -> float: ...


class Suppression:
    """The suppression of one engine. Used on the loop only."""

    def __init__(self, engine: _Engine, log: SuppressionLog) -> None:
        self._engine = engine
        self._log = log
        self._order = asyncio.Lock()  # commit, then append: never the second change's entry before the first's
        engine.jobs.run_here(IMPORT_KIND, self._import)

    async def rebuild(self, oldest_position: int | None) -> int:
        """Fill the log at a start; answers the number of its entries.

        oldest_position  what the oldest unfinished snapshot knew; None: no snapshot is in use, the log begins empty
        About 1.5 s for a million changes made since that snapshot.
        """
        last: int = await self._engine.store_call(store_suppression.position)
        first = last if oldest_position is None else min(oldest_position, last)
        assert self._log.count == 0, "a log is begun once, before anybody reads it"
        SuppressionLog.create(self._engine.tables.arena, first + 1)  # its header is the one that our log looks at
        async with self._order:
            await self._catch_up()
        return self._log.count

    async def add(self, addresses: Sequence[str], reason: str = "manual", source: str = "operator") -> dict[str, Any]:
        """Suppress addresses: {"added", "already"}. All or none: raises EcmError invalid_value for the first bad one.

        When it returns every sender can see them.
        """
        entries = _entries(addresses)
        added = 0
        for batch in _batches(entries):
            added += len(await self._commit(store_suppression.add, batch, reason, source, self._engine.now_s()))
        if added:
            self._tell("recipient.suppressed", entries, {"added": added, "reason": reason, "source": source})
        return {"added": added, "already": len(entries) - added}

    async def remove(self, addresses: Sequence[str]) -> dict[str, Any]:
        """Let addresses be mailed again: {"removed", "unknown"}."""
        entries = _entries(addresses)
        removed = 0
        for batch in _batches(entries):
            removed += len(await self._commit(store_suppression.remove, [entry.key for entry in batch]))
        if removed:
            self._tell("recipient.unsuppressed", entries, {"removed": removed})
        return {"removed": removed, "unknown": len(entries) - removed}

    async def import_(self, path: str, reason: str = "manual", key: str | None = None) -> int:
        """Suppress all addresses of a file: answers the id of the job that does it.

        Raises EcmError if the file cannot be opened.
        """
        (await asyncio.to_thread(AddressFile.open, path)).close()
        return await self._engine.jobs.start(IMPORT_KIND, {"path": path, "reason": reason}, key)

    async def _import(self, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """The job. Batches that were committed stay when it is interrupted; doing it again adds the rest."""
        path, reason = args["path"], args["reason"]
        began = time.monotonic()
        file = await asyncio.to_thread(AddressFile.open, path)
        added = 0
        try:
            chunks = file.chunks()
            while (batches := await asyncio.to_thread(_next_batches, chunks)) is not None:
                for batch in batches:
                    now_s = self._engine.now_s()
                    added += len(await self._commit(store_suppression.add, batch, reason, "import", now_s))
                progress(_progress(file, time.monotonic() - began))
        finally:
            file.close()
        seconds = time.monotonic() - began
        result = {
            "path": path,
            "rows": file.rows,
            "added": added,
            "already": file.rows - file.invalid - added,
            "invalid": file.invalid,
            "first_invalid_line": file.first_invalid_line,
            "seconds": round(seconds, 3),
            "rows_per_second": round(file.rows / seconds, 1),
        }
        self._tell("recipient.suppressed", [], {"added": added, "reason": reason, "source": "import"})
        return result

    async def _commit(self, change: Callable[..., Changes], *args: Any) -> Changes:
        """Make a change in the store, then tell the log. Raises EcmError shm_full if the log cannot take it."""
        async with self._order:
            changes: Changes = await self._engine.store_call(change, *args)
            if self._log.position + 1 == changes.first:
                self._append(changes)
            elif len(changes):
                await self._catch_up()
        return changes

    async def _catch_up(self) -> None:
        """Append what the store has and the log has not."""
        while len(missing := await self._engine.store_call(store_suppression.changes_since, self._log.position)):
            self._append(missing)

    def _append(self, changes: Changes) -> None:
        try:
            self._log.append(_log_entries(changes))
        except ShmFull as error:
            raise EcmError(
                "shm_full",
                f"suppressed in the store, but running campaigns cannot be told: {error}",
                hint="pause them, give the engine more shared memory (--shm-size) and start it again",
            ) from error

    def _tell(self, event: str, entries: Sequence[Entry], data: dict[str, Any]) -> None:
        addresses = [entry.address for entry in entries[:ADDRESSES_TOLD_MAX]]
        self._engine.events.publish("recipient", event, data={**data, "addresses": addresses})


def _entries(addresses: Sequence[str]) -> list[Entry]:
    entries = {}
    for text in addresses:
        entry = entry_of(text)
        if entry is None:
            raise EcmError("invalid_value", f"not an email address: `{text}`", field="addresses")
        entries[entry.key] = entry
    return list(entries.values())


def _batches(entries: list[Entry]) -> Iterator[list[Entry]]:
    return (entries[start : start + BATCH_ROWS] for start in range(0, len(entries), BATCH_ROWS))


def _next_batches(chunks: Iterator[Chunk]) -> list[Batch] | None:
    chunk = next(chunks, None)
    return None if chunk is None else chunk.batches()


def _progress(file: AddressFile, seconds: float) -> dict[str, Any]:
    left = file.size - file.offset
    return {
        "phase": "reading",
        "bytes": file.offset,
        "bytes_total": file.size,
        "rows": file.rows,
        "per_second": round(file.rows / seconds, 1),
        "eta_s": round(left * seconds / file.offset, 1),
    }


def _log_entries(changes: Changes) -> Entries:
    entries = np.zeros(len(changes), ENTRY)  # scope 0: every campaign
    entries["op"] = changes.ops
    entries["kind"] = changes.kinds
    entries["key"] = changes.keys
    return entries
