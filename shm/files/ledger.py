"""The ledger of a shard: what became of each recipient, in a mapped file of 16 bytes a row
(drawn in ledger_layout.py).

Invariants:

- one process writes: the sender that holds the lease, or the broker while nobody does; anybody may read;
- the summary (128-255) is true only if closed epoch == open epoch, and an epoch of 0 never closed; any other ledger
  is counted from its rows;
- word B is stored before word A, each as one aligned 8-byte store: a torn row cannot exist;
- no byte of a message leaves before `sync` has returned from a time when its row said CLAIMED;
- after `sync` has failed nothing written to this file can be trusted to be on the disk: take `image()` and stop.

Hot path: `sending` and `sent` cost 0.3 us each and run once a message; whatever takes an array of rows costs
some microseconds and runs once a batch. This module never reads a clock.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

import numpy as np

from shm.files import ledger_idle
from shm.files.durable import FileDamaged, create_full, replace_file
from shm.files.ledger_idle import Policy, Recovered, Retried
from shm.files.ledger_layout import (
    ATTEMPTS,
    BOOT_AT,
    BOOT_SIZE,
    CLOSED_EPOCH,
    FIRST_NS,
    HEAD_SIZE,
    HOLDER,
    LAST_NS,
    NEXT_S,
    OPEN_EPOCH,
    RESENT,
    ROW_SIZE,
    SINCE_PROGRESS,
    SUMMARY,
    LedgerMismatch,
    check,
    pack_head,
)
from shm.files.ledger_states import (
    AGAIN,
    ATTEMPTS_MAX,
    STATE_MASK,
    STICKY,
    TRANSITIONS,
    Counts,
    Row,
    States,
    Writer,
    pack_a,
    pack_reply,
    unpack_a,
)
from shm.files.ledger_words import Rows, RowsLike, Words, count_rows, due_rows, expired_rows, move, next_due, released

__all__ = [
    "STICKY", "TRANSITIONS", "Counts", "Ledger", "LedgerMismatch", "Policy", "Recovered", "Row", "States",
    "Writer", "pack_a", "pack_reply", "unpack_a",
]  # fmt: skip

KEPT: Final = ATTEMPTS_MAX << 8 | STICKY | AGAIN  # what a reply leaves of word A
_CLAIMED, _SENDING, _SENT, _DEFERRED = map(int, (States.CLAIMED, States.SENDING, States.SENT, States.DEFERRED))
_TO_SENDING: Final = _SENDING - _CLAIMED


class Ledger:
    """One mapped ledger. `rows` is their number; `a` and `b` are its words by row, for hot reads and writes."""

    __slots__ = ("_descriptor", "_head", "_map", "_table", "a", "b", "path", "rows")

    def __init__(self, path: Path, descriptor: int, mapping: mmap.mmap, rows: int) -> None:
        self.path = path
        self.rows = rows
        self._descriptor = descriptor
        self._map = mapping
        words = memoryview(mapping).cast("Q")
        self._head = words[: HEAD_SIZE // 8]
        self.a = words[HEAD_SIZE // 8 :: 2]
        self.b = words[HEAD_SIZE // 8 + 1 :: 2]
        self._table: Words = np.frombuffer(mapping, np.uint64, 2 * rows, HEAD_SIZE).reshape(rows, 2)

    @classmethod
    def create(cls, path: Path, *, instance: str, campaign: int, shard: int, rows: int) -> None:
        """Make the ledger durably, allocated in full, every row PENDING. Raises OSError; then nothing is there."""
        create_full(path, HEAD_SIZE + ROW_SIZE * rows, pack_head(instance, campaign, shard, rows))

    @classmethod
    def open(cls, path: Path, *, instance: str, campaign: int, shard: int, writable: bool) -> Ledger:
        """Map the ledger.

        Raises LedgerMismatch naming the field (magic, version, instance, campaign, shard), FileDamaged, OSError.
        """
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            rows = check(path, descriptor, instance, campaign, shard)
            protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
            mapping = mmap.mmap(descriptor, HEAD_SIZE + ROW_SIZE * rows, prot=protection)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, mapping, rows)

    @staticmethod
    def restore(path: Path, image: bytes) -> None:
        """Put a ledger's `image` in the place of one whose sync failed, durably. Raises OSError; then nothing changed.

        What the lost file had on the disk is unknown: recover the new one as after a power loss.
        """
        replace_file(path, [image])

    def image(self) -> bytes:
        """A copy of the whole file as it is in memory."""
        return self._map[:]

    def words(self) -> Words:
        """The rows as a u8 array of shape (rows, 2), in place: column 0 is word A. For scans, and as long as open."""
        return self._table

    def sync(self) -> None:
        """Make every store that happened before the call durable. From any thread. Raises OSError, finally."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Give the mapping back; nothing is synced. An array that somebody still holds keeps it until it goes too."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        for view in (self.a, self.b, self._head):
            view.release()
        self._table = np.empty((0, 2), np.uint64)
        try:
            self._map.close()
        except BufferError:
            return  # the last view unmaps it; to pull the memory from under a scan would be a crash

    # The header.

    @property
    def open_epoch(self) -> int:
        """Number of the newest lease; 0 if there never was one."""
        return self._head[OPEN_EPOCH]

    @property
    def closed_epoch(self) -> int:
        """Number of the lease that wrote the summary; unequal to `open_epoch` while the summary is not true."""
        return self._head[CLOSED_EPOCH]

    @property
    def holder(self) -> int:
        """Actor row of the newest lease's holder (0 = the broker)."""
        return self._head[HOLDER]

    @property
    def boot_id(self) -> str:
        """Boot id of the machine when the newest lease was opened; empty if there never was one."""
        return self._map[BOOT_AT : BOOT_AT + BOOT_SIZE].rstrip(b"\0").decode()

    @property
    def leases_since_progress(self) -> int:
        """Leases opened since a row last concluded: 2 and more with a dead holder means poison."""
        return self._head[SINCE_PROGRESS]

    @property
    def first_attempt_ns(self) -> int:
        """Engine time of the first attempt as far as a holder wrote it; 0 if none did."""
        return self._head[FIRST_NS]

    @property
    def last_conclusion_ns(self) -> int:
        """Engine time of the last conclusion as far as a holder wrote it; 0 if none did."""
        return self._head[LAST_NS]

    def open_lease(self, epoch: int, holder: int, boot_id: str) -> None:
        """Broker, before it hands over, off its loop: the summary is not true from here on, durably. Raises OSError.

        Without the sync a power loss could keep rows of this lease beside a header that still vouches for the last
        one. Epochs of a ledger only grow.
        """
        text = boot_id.encode()
        assert epoch > self.open_epoch, f"epoch {epoch} does not follow {self.open_epoch}"
        assert len(text) <= BOOT_SIZE, "a boot id is a UUID"
        self._head[HOLDER] = holder
        self._head[SINCE_PROGRESS] += 1
        self._map[BOOT_AT : BOOT_AT + BOOT_SIZE] = text.ljust(BOOT_SIZE, b"\0")
        self._head[OPEN_EPOCH] = epoch
        self.sync()

    def progressed(self) -> None:
        """Holder, when rows have concluded: earlier deaths are forgiven."""
        self._head[SINCE_PROGRESS] = 0

    def close_lease(self, epoch: int, first_attempt_ns: int = 0, last_conclusion_ns: int = 0) -> Counts:
        """Holder, between two syncs: write the summary, with the lease's own times if it has any, then closed epoch.

        Every row must have left CLAIMED and SENDING. The first sync makes the rows durable before a summary speaks
        for them; the second makes the summary so.
        """
        assert epoch == self.open_epoch, f"lease {epoch} is not the newest ({self.open_epoch})"
        self.note_times(first_attempt_ns, last_conclusion_ns)
        counts = self.summarise()
        assert counts.in_flight == 0, "a lease is returned with nothing in flight"
        self.progressed()
        self._head[CLOSED_EPOCH] = epoch
        return counts

    def note_times(self, first_attempt_ns: int, last_conclusion_ns: int) -> None:
        """Write the times that a holder keeps in memory, engine time; 0 = it has none. Never widens wrongly."""
        head = self._head
        if first_attempt_ns and not 0 < head[FIRST_NS] < first_attempt_ns:
            head[FIRST_NS] = first_attempt_ns
        head[LAST_NS] = max(head[LAST_NS], last_conclusion_ns)

    def summarise(self) -> Counts:
        """Count the rows and write the summary; it becomes true with `closed_epoch` only."""
        counts = self.count()
        head = self._head
        for state, number in enumerate(counts.by_state):
            head[SUMMARY + state] = number
        head[ATTEMPTS] = counts.attempts
        head[RESENT] = counts.resent
        head[NEXT_S] = counts.next_attempt_s
        head[FIRST_NS] = counts.first_attempt_ns
        head[LAST_NS] = counts.last_conclusion_ns
        return counts

    @property
    def is_closed(self) -> bool:
        """Whether the summary is true."""
        return 0 < self._head[OPEN_EPOCH] == self._head[CLOSED_EPOCH]

    def distrust(self) -> None:
        """Broker, before it changes rows of an idle ledger: the summary is not true, durably. Raises OSError."""
        if self.is_closed:
            self._head[CLOSED_EPOCH] = 0
            self.sync()

    def settle(self) -> None:
        """Broker, after it changed rows: make them durable, then the summary true again. Raises OSError."""
        self.sync()
        if self.open_epoch:
            self.summarise()
            self._head[CLOSED_EPOCH] = self.open_epoch
            self.sync()

    def summary(self) -> Counts | None:
        """The counts as the header has them, or None if only the rows can tell. 1 us."""
        if not self.is_closed:
            return None
        head = self._head
        by_state = tuple(head[SUMMARY:ATTEMPTS])
        return Counts(by_state, head[ATTEMPTS], head[RESENT], head[NEXT_S], head[FIRST_NS], head[LAST_NS])

    # Scans: safe while another process writes, since each word is read once and is never torn.

    def count(self) -> Counts:
        """Count the rows. About 80 us for 10,000. Raises FileDamaged if a row has a state that does not exist."""
        try:
            return count_rows(self._table, self._head[FIRST_NS], self._head[LAST_NS])
        except ValueError as error:
            raise FileDamaged(self.path, str(error)) from None

    def due(self, now_s: int) -> Rows:
        """Row numbers, in order, that may be attempted at `now_s`: PENDING, and DEFERRED whose time has come. A copy.

        Every row may be later than the newest count: 35 us for 10,000, once a lease or a tick, never per message.
        """
        return due_rows(self._table, now_s)

    def expired(self, now_s: int, give_up_s: int) -> Rows:
        """DEFERRED rows first attempted `give_up_s` or longer ago. A row never attempted never expires."""
        return expired_rows(self._table, now_s, give_up_s)

    def next_due_s(self, after_s: int = 0) -> int:
        """Earliest next attempt, later than `after_s`, of a DEFERRED row, engine seconds; 0 if there is none."""
        return next_due(self._table, after_s)

    # Changes by the holder. None of them syncs.

    def claim(self, rows: RowsLike) -> None:
        """PENDING or due DEFERRED -> CLAIMED, word B untouched. Each may be attempted after the next sync."""
        move(self._table, rows, States.CLAIMED, frm=(States.PENDING, States.DEFERRED))

    def unclaim(self, rows: RowsLike) -> None:
        """CLAIMED -> what it was: PENDING if never attempted and not sticky, else DEFERRED."""
        index = np.asarray(rows, np.intp)
        words = self._table[index, 0]
        assert bool(np.all(words & STATE_MASK == States.CLAIMED)), "only CLAIMED rows go back"
        self._table[index, 0] = released(words)

    def sending(self, row: int, now_s: int) -> None:
        """CLAIMED -> SENDING: its MAIL is handed over next. Counts the attempt; keeps the time of the first.

        The caller has seen a sync return since the row was claimed.
        """
        word = self.a[row]
        assert word & STATE_MASK == _CLAIMED, "only a CLAIMED row is attempted"
        times = self.b[row]
        if times < 1 << 32:
            self.b[row] = times | now_s << 32
        word |= (word & STICKY) >> 1  # AGAIN
        # attempts saturates: a carry would run into the reply code
        self.a[row] = word + (_TO_SENDING if word & 0xFF00 == 0xFF00 else 0x100 + _TO_SENDING)

    def conclude(
        self,
        row: int,
        state: int,
        code: int,
        enhanced: tuple[int, int, int] | None,
        relay: int,
        now_s: int,
        next_s: int = 0,
    ) -> None:
        """SENDING -> SENT, BOUNCED, FAILED, UNCERTAIN, CANCELLED at `now_s`, or DEFERRED until `next_s`.

        The caller names no other state; with policy `resend` it calls `resend` where this would say UNCERTAIN.
        """
        word = self.a[row]
        assert word & STATE_MASK == _SENDING, "only a row that is being sent concludes"
        self.b[row] = self.b[row] >> 32 << 32 | next_s if state == _DEFERRED else now_s << 32
        self.a[row] = word & KEPT | state | pack_reply(code, enhanced, relay)

    def sent(self, row: int, answer: int, now_s: int) -> None:
        """SENDING -> SENT at `now_s`: `conclude` for what is concluded most. Hot.

        answer  `pack_reply` of what the relay said
        """
        word = self.a[row]
        assert word & STATE_MASK == _SENDING, "only a row that is being sent concludes"
        self.b[row] = now_s << 32
        self.a[row] = word & KEPT | _SENT | answer

    def resend(self, row: int, code: int, enhanced: tuple[int, int, int] | None, relay: int, now_s: int) -> bool:
        """SENDING, and it may have been accepted, under policy `resend`: DEFERRED and sticky, due now.

        A row that is sticky already is not sent a third time: it concludes UNCERTAIN, and False is returned.
        """
        word = self.a[row]
        if word & STICKY:
            self.conclude(row, States.UNCERTAIN, code, enhanced, relay, now_s)
            return False
        assert word & STATE_MASK == _SENDING, "only a row that is being sent is sent again"
        self.b[row] = self.b[row] >> 32 << 32 | now_s
        # one store: had UNCERTAIN or a plain DEFERRED stood here in between, a crash there would forget or add a copy
        self.a[row] = word & KEPT | STICKY | _DEFERRED | pack_reply(code, enhanced, relay)
        return True

    def suppress(self, rows: RowsLike, now_s: int = 0) -> None:
        """PENDING, CLAIMED, DEFERRED -> SUPPRESSED, UNCERTAIN if sticky, at `now_s` (0: unknown). The loader too."""
        move(self._table, rows, States.SUPPRESSED, frm=(States.PENDING, States.CLAIMED, States.DEFERRED), at_s=now_s)

    def cancel(self, rows: RowsLike, now_s: int) -> None:
        """PENDING, CLAIMED, DEFERRED -> CANCELLED at `now_s`; a sticky row UNCERTAIN."""
        move(self._table, rows, States.CANCELLED, frm=(States.PENDING, States.CLAIMED, States.DEFERRED), at_s=now_s)

    def fail(self, rows: RowsLike, now_s: int) -> None:
        """DEFERRED (given up) or CLAIMED (cannot be composed, or came too late) -> FAILED at `now_s`."""
        move(self._table, rows, States.FAILED, frm=(States.CLAIMED, States.DEFERRED), at_s=now_s)

    def mark_duplicates(self, rows: RowsLike) -> None:
        """Loader, at snapshot: PENDING -> DUPLICATE, out of the audience for good."""
        move(self._table, rows, States.DUPLICATE, frm=(States.PENDING,))

    # Changes by the broker, in a worker thread, while nobody holds a lease: they sync (ledger_idle.py).

    def recover(self, power_lost: bool, policy: Policy, now_s: int, poison: Collection[int] = ()) -> Recovered:
        """Settle what a dead holder left CLAIMED or SENDING (ledger_idle.recover)."""
        return ledger_idle.recover(self, power_lost=power_lost, policy=policy, now_s=now_s, poison=poison)

    def cancel_idle(self, now_s: int = 0) -> int:
        """PENDING, CLAIMED, DEFERRED -> CANCELLED; how many."""
        return ledger_idle.cancel_idle(self, now_s)

    def retry(self, states: Collection[States], now_s: int, until_s: int | None = None) -> Retried:
        """FAILED and / or UNCERTAIN, concluded by `until_s` -> DEFERRED, due now; how many."""
        return ledger_idle.retry(self, states, now_s, until_s)

    def give_up(self, now_s: int, give_up_s: int) -> int:
        """DEFERRED rows first attempted `give_up_s` or longer ago -> FAILED; how many."""
        return ledger_idle.give_up(self, now_s, give_up_s)
