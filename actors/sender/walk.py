"""A recipient's way through a sender: chosen, composed, paced, recorded, handed over; concluded, recorded.

The hot path: everything here runs once a message or once a batch of replies, at 30 us in all; no task, no timer, no
system call, no allocation that can be kept out.

- Bytes of a row leave only if it was durably CLAIMED, is not suppressed, and its lease's order says run: order and
  suppression are compared after composing, right before the row becomes SENDING.
- A gated lease's token is stored as spent before the bytes are handed over.
- One write a connection and turn; under a gap, one message a write.
- Leases of one relay take turns, a message each.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable
from typing import Final

from actors.message.compose import ComposeError, MissingField
from actors.sender import record
from actors.sender.alarm import Alarm
from actors.sender.connection import Connection
from actors.sender.lease import Lease
from actors.sender.relays import Pool
from actors.smtp.outcome import Connection as Action
from actors.smtp.transaction import Concluded, Event, Stage
from shm.files.ledger import States
from shm.live import grants
from shm.live.clock import EngineClock
from shm.live.counters import ATTEMPTED
from shm.live.grants import GrantTable
from shm.live.histogram import Histogram
from shm.live.leases import LeaseTable
from shm.live.suppressed import SuppressionReader

__all__ = ["Walk"]

ATTEMPT: Final = struct.Struct("<qq")  # trace: monotonic ns, lease number
COALESCE_NS: Final = 1_000_000  # tokens without a gap are not woken for more often than this
# Under a gap the sender wakes this much early, composes, and spins to the time: a gap of 1 ms then takes 1.05 ms and
# not 1.25 (measured).  The loop stands still meanwhile, a tenth of the gap at most where it matters.
AHEAD_NS: Final = 150_000

_CLAIMED: Final = int(States.CLAIMED)
_OK: Final = Event.OK
_BODY: Final = Stage.BODY
_JUDGED: Final = frozenset({Event.TRANSIENT, Event.PERMANENT})
_monotonic_ns = time.monotonic_ns


class Walk:
    """The way of all leases of this sender.

    reorder   called with a lease whose order word is another than the one it obeys
    hungry    called with a lease that has nothing ready
    news      called when the suppression log has grown
    """

    def __init__(
        self,
        row: int,
        *,
        table: LeaseTable,
        grant_table: GrantTable,
        suppression: SuppressionReader,
        clock: EngineClock,
        histogram: Histogram,
        alarm: Alarm,
        reorder: Callable[[Lease], None],
        hungry: Callable[[Lease], None],
        news: Callable[[], None],
    ) -> None:
        self._row = row
        self._order = table.order
        self._next_slice = grant_table.next_slice
        self._suppressions = suppression.count
        self._now_s = clock.now_s
        self._record_us = histogram.record
        self._alarm = alarm
        self._reorder = reorder
        self._hungry = hungry
        self._news = news
        self.pools: list[Pool] = []
        self.suppressions_seen = 0
        self._number = 0

    # Which leases have something to send.

    def activate(self, lease: Lease) -> Pool | None:
        """Let a lease take turns, if it has rows ready and may send now; the pool it stands in.

        A gated lease's slices are looked after whether it has rows or not: what lapses goes back at once.
        """
        if lease.stopping:
            return None
        index = lease.relay
        if lease.gated:
            if not self._granted(lease):
                self.deactivate(lease)
                return None
            index = lease.pace.relay
        pool = self.pools[index]
        if lease.lanes is not pool.lanes:
            self.deactivate(lease)
            if not lease.ready:
                return None
            pool.lanes.append(lease)
            lease.lanes = pool.lanes
        return pool

    def deactivate(self, lease: Lease) -> None:
        """Take a lease out of the turns."""
        if lease.lanes is not None:
            lease.lanes.remove(lease)
            lease.lanes = None

    def return_grants(self, lease: Lease) -> None:
        """Give back everything that was granted and not spent, slices not yet looked at too."""
        unspent = lease.pace.drop()
        while (piece := self._next_slice(self._row, lease.offer.slot)) is not None:
            unspent += piece.n
        lease.grant_words[grants.RETURNED] += unspent

    def pump(self, pool: Pool) -> None:
        """Give work to the connections that wait for some."""
        for _ in range(len(pool.free)):
            if not pool.lanes:
                return
            connection = pool.free.pop()
            connection.waiting = False
            self.refill(connection, b"")

    # Forth: from a ready row to bytes on a socket.

    def refill(self, connection: Connection, out: bytes) -> None:
        """Write `out` and the messages for which the connection has room, at once."""
        pool = connection.pool
        lanes = pool.lanes
        gapped = None
        while lanes and connection.room():
            lease = lanes[0]
            if len(lanes) > 1:
                lanes.rotate(-1)
            part = self._next(lease, connection)
            if part is not None:
                out += part
                if lease.gated and lease.pace.gap_ns:
                    gapped = lease.pace
                    break
        if out:
            connection.write(out)
            if gapped is not None:
                gapped.handed_over(_monotonic_ns())
        elif not connection.flights and not connection.waiting and not connection.ended:
            pool.rest(connection)

    def _next(self, lease: Lease, connection: Connection) -> bytes | None:
        """One message of a lease, recorded as SENDING; None if the lease or its next row is passed over."""
        if lease.gated and not self._may_use(lease, connection.pool):
            self.deactivate(lease)
            return None
        if not lease.ready:
            self.deactivate(lease)
            self._hungry(lease)
            return None
        row = lease.ready.popleft()
        ledger = lease.ledger
        if ledger.a[row] & 15 != _CLAIMED:
            return None  # suppressed since
        lease.used += 1
        now_s = self._now_s()
        try:
            message = lease.composer.compose(lease.shard.fields(row), lease.keys[row << 4 : row + 1 << 4], now_s)
        except (ComposeError, MissingField) as error:
            record.not_composed(lease, row, str(error), now_s)
            return None
        now_ns = self._await_due(lease) if lease.gated else _monotonic_ns()
        offer = lease.offer
        changed = (
            self._suppressions() != self.suppressions_seen or self._order(self._row, offer.slot) != lease.order_word
        )
        if changed or not now_ns:
            lease.ready.appendleft(row)
            self._changed(lease)
            return None
        mail_from, rcpt_to, data, smtputf8 = message
        if smtputf8 and not connection.features.smtputf8:
            record.not_composed(lease, row, "the relay takes no address beyond ASCII (SMTPUTF8)", now_s)
            return None
        params = connection.features.params(data, smtputf8=smtputf8)
        number = self._number = self._number + 1
        if lease.gated:
            words = lease.grant_words
            words[grants.SPENT_NS] = now_ns
            words[grants.SPENT] += 1
            lease.pace.spend(now_ns)
        ledger.sending(row, now_s)
        lease.words[ATTEMPTED] += 1
        lease.in_flight += 1
        lease.dirty = True
        if not lease.first_attempt_ns:
            lease.first_attempt_ns = now_ns
        if lease.trace is not None:
            lease.trace += ATTEMPT.pack(now_ns, offer.number)
        connection.left -= 1
        connection.flights.append((number, lease, row, now_ns))
        return connection.transactions.submit(number, mail_from, rcpt_to, data, params)

    def _await_due(self, lease: Lease) -> int:
        """Spin to the time of a token that is all but due; the time it is then, or 0 if the token lapsed meanwhile."""
        pace = lease.pace
        due_ns = pace.due_ns()
        now_ns = _monotonic_ns()
        while now_ns < due_ns:
            now_ns = _monotonic_ns()
        lapsed = pace.lapse(now_ns)
        lease.grant_words[grants.RETURNED] += lapsed
        return 0 if lapsed else now_ns

    def _changed(self, lease: Lease) -> None:
        """The broker said something since we last looked."""
        if self._suppressions() != self.suppressions_seen:
            self._news()
        if self._order(self._row, lease.offer.slot) != lease.order_word:
            self._reorder(lease)

    def _may_use(self, lease: Lease, pool: Pool) -> bool:
        """Whether a gated lease may send a message through this relay now."""
        if not self._granted(lease):
            return False
        if self.pools[lease.pace.relay] is pool:
            return True
        self._alarm.at(_monotonic_ns())  # its next turn is in another pool
        return False

    def _granted(self, lease: Lease) -> bool:
        """Whether a gated lease may send a message now; if it may later, the alarm is set.  Returns what lapsed."""
        pace = lease.pace
        while True:
            now_ns = _monotonic_ns()
            lapsed = pace.lapse(now_ns)
            if lapsed:
                lease.grant_words[grants.RETURNED] += lapsed
            due_ns = pace.due_ns()
            ahead_ns = AHEAD_NS if pace.gap_ns else 0
            if due_ns <= now_ns + ahead_ns:
                return True
            if pace.left:
                self._alarm.at(due_ns - ahead_ns if ahead_ns else max(due_ns, now_ns + COALESCE_NS))
                return False
            piece = self._next_slice(self._row, lease.offer.slot)
            if piece is None:
                return False
            pace.begin(piece)

    # Back: from replies to records.

    def conclude(self, connection: Connection, concluded: Iterable[Concluded], now_ns: int) -> None:
        """Record what became of messages, oldest first; ends the connection if one of them says so."""
        flights = connection.flights
        pool = connection.pool
        index = pool.index
        now_s = self._now_s()
        action = Action.KEEP
        waiting = len(flights)
        oldest_ns = flights[0][3] if waiting else now_ns
        for item in concluded:
            number, lease, row, started_ns = flights.popleft()
            assert number == item[0], "conclusions come in the order of submission"
            place = lease.places[index]
            if item[3] is _OK and item[1] is _BODY:
                assert item[2] is not None
                record.sent(lease, row, item[2], place, now_s)
                connection.replied += 1
                self._record_us((now_ns - started_ns) // 1000)
            else:
                outcome = record.troubled(lease, row, item, place, now_s)
                pool.heard(outcome, item)
                if item.reply is not None:
                    connection.replied += item.event in _JUDGED
                    self._record_us((now_ns - started_ns) // 1000)
                if outcome.action is not Action.KEEP:
                    action = outcome.action
            lease.last_conclusion_ns = now_ns
            lease.dirty = True
            lease.in_flight -= 1
            if not lease.in_flight and not lease.ready:
                self._hungry(lease)
        pool.done += waiting - len(flights)
        pool.latency_ns = now_ns - oldest_ns
        if action is not Action.KEEP:
            connection.break_off("lost")
