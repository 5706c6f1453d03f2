"""Cuts a stream of records into shard files and gives each its ledger.

Writing waits for the disk (an fsync is some milliseconds), so files are finished in threads while the next are
filled; at most `UNFINISHED` are held, so memory does not grow with the audience.

Invariants
- Rows keep their order: row n of the campaign is row n - start of the shard whose range holds it.
- Every shard and ledger is durable when `seal` returns.
- The first shards are small, so that a small campaign too has work for every sender.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from broker.contract.paths import StateDir
from shm.files.ledger import Ledger
from shm.files.shard import GROUP_OTHER, ShardWriter

__all__ = ["SHARD_ROWS_MAX", "Planned", "ShardFeed", "shard_rows"]

SHARD_ROWS_MAX: Final = 10_000
SHARD_BYTES_MAX: Final = 8 << 20  # of wide rows a shard holds fewer: it is mapped, and here in memory until written
SHARD_ROWS_STEP: Final = 1_000
SHARDS_A_SENDER: Final = 4  # of one size, before they grow by a step
THREADS: Final = 4  # they wait for the disk, not for the processor
UNFINISHED: Final = 8

RowNumbers = npt.NDArray[np.int64]


def shard_rows(index: int, senders: int) -> int:
    """Rows of the shard `index` (from 0) of a campaign that `senders` processes will send."""
    return min(SHARD_ROWS_MAX, SHARD_ROWS_STEP * (1 + index // (SHARDS_A_SENDER * max(senders, 1))))


@dataclass(frozen=True, slots=True)
class Planned:
    """A shard that was cut: its number, its first row in the campaign, how many rows it has."""

    number: int
    start: int
    rows: int


class ShardFeed:
    """Takes records in order. Either `seal` or `abandon` ends it."""

    def __init__(self, state: StateDir, instance: str, campaign: int, senders: int) -> None:
        self._state = state
        self._instance = instance
        self._campaign = campaign
        self._senders = senders
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="shards")
        self._unfinished: deque[Future[None]] = deque()
        self._start = 0
        self._writer = self._next_writer(1)
        self.shards: list[Planned] = []

    def add(self, keys: npt.NDArray[np.uint64], records: list[bytes]) -> None:
        """The next rows: u8 words of shape (n, 2), n msgpack maps. Raises OSError (disk full)."""
        at = 0
        while at < len(records):
            room = self._rows_max - self._writer.rows
            some = records[at : at + room]
            self._writer.add_many(keys[at : at + len(some)].tobytes(), some)
            at += len(some)
            self._bytes += sum(map(len, some))
            if self._writer.rows == self._rows_max or self._bytes >= SHARD_BYTES_MAX:
                self._cut()

    def seal(self, duplicates: RowNumbers, suppressed: RowNumbers, now_s: int) -> None:
        """Finish the last shard, then make every ledger, with the rows that are out from the beginning marked.

        duplicates, suppressed   row numbers of the campaign, rising, none in both
        """
        if self._writer.rows:
            self._cut()
        for shard in self.shards:
            out, silent = (_within(rows, shard) for rows in (duplicates, suppressed))
            self._submit(self._pool.submit(self._make_ledger, shard, out, silent, now_s))
        self._drain(0)
        self._pool.shutdown()

    def abandon(self) -> None:
        """Stop; files that are being written are finished first, so nobody writes when this returns."""
        self._pool.shutdown(cancel_futures=True)

    def _next_writer(self, number: int) -> ShardWriter:
        self._rows_max = shard_rows(number - 1, self._senders)
        self._bytes = 0
        path = self._state.shard(self._campaign, number)
        return ShardWriter(path, instance=self._instance, campaign=self._campaign, shard=number, group=GROUP_OTHER)

    def _cut(self) -> None:
        writer = self._writer
        shard = Planned(len(self.shards) + 1, self._start, writer.rows)
        self.shards.append(shard)
        self._start += shard.rows
        self._writer = self._next_writer(shard.number + 1)
        self._submit(self._pool.submit(_finish, writer))

    def _submit(self, future: Future[None]) -> None:
        self._unfinished.append(future)
        self._drain(UNFINISHED)

    def _drain(self, most: int) -> None:
        while len(self._unfinished) > most:
            self._unfinished.popleft().result()

    def _make_ledger(self, shard: Planned, duplicates: RowNumbers, suppressed: RowNumbers, now_s: int) -> None:
        path = self._state.ledger(self._campaign, shard.number)
        Ledger.create(path, instance=self._instance, campaign=self._campaign, shard=shard.number, rows=shard.rows)
        if not len(duplicates) and not len(suppressed):
            return
        ledger = Ledger.open(path, instance=self._instance, campaign=self._campaign, shard=shard.number, writable=True)
        try:
            ledger.mark_duplicates(duplicates)
            ledger.suppress(suppressed, now_s)
            ledger.sync()
        finally:
            ledger.close()


def _finish(writer: ShardWriter) -> None:
    writer.finish()


def _within(rows: RowNumbers, shard: Planned) -> RowNumbers:
    """Those of the campaign's rows that lie in the shard, as rows of the shard."""
    first, last = np.searchsorted(rows, (shard.start, shard.start + shard.rows))
    return rows[first:last] - shard.start
