"""A recipient's way through a sender: chosen, composed, paced, recorded, handed over; concluded, recorded.

The hot path: everything here runs once a message or once a batch of replies; no task, no timer, no system call, no
allocation that can be kept out.

- Bytes of a row leave only if it was durably CLAIMED, is not suppressed, and its lease's order says run: order and
  suppression are compared after composing, right before the row becomes SENDING.
- A gated lease's token is stored as spent before the bytes are handed over.
- One write a connection and turn; under a gap, one message a write.
- Leases of one relay take turns, a message each (`lanes`).
- The clock is read once for all replies of a wake-up, and once for each message, when it has been composed.
- What the relay cannot take (SIZE, SMTPUTF8) fails before it is sent, and is no attempt.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from typing import Final

from actors.message.compose import ComposeError, MissingField
from actors.sender import record
from actors.sender.alarm import Alarm
from actors.sender.connection import Connection
from actors.sender.gate import Gate
from actors.sender.lease import Lease
from actors.sender.relays import Pool
from actors.smtp.outcome import Connection as Action
from actors.smtp.transaction import Concluded, Event, Stage
from shm.files.ledger import States
from shm.live.clock import EngineClock
from shm.live.counters import AT_HAND, ATTEMPTED
from shm.live.grants import GrantTable
from shm.live.histogram import Histogram
from shm.live.suppressed import SuppressionReader

__all__ = ["Walk"]

ATTEMPT: Final = struct.Struct("<qq")  # trace: monotonic ns, lease number
SECOND_NS: Final = 1_000_000_000

_CLAIMED: Final = int(States.CLAIMED)
_OK: Final = Event.OK
_BODY: Final = Stage.BODY
_MAIL: Final = Stage.MAIL
_JUDGED: Final = frozenset({Event.TRANSIENT, Event.PERMANENT})
_UNHEARD: Final = frozenset({Event.LOST_BEFORE, Event.TIMEOUT_BEFORE, Event.GARBAGE_BEFORE})
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
        grant_table: GrantTable,
        suppression: SuppressionReader,
        clock: EngineClock,
        histogram: Histogram,
        alarm: Alarm,
        reorder: Callable[[Lease], None],
        hungry: Callable[[Lease], None],
        news: Callable[[], None],
    ) -> None:
        self.gate = Gate(row, grant_table, alarm)
        self._suppressions = suppression.count_word()
        self.at_ns = clock.at_ns
        self._record_us = histogram.record
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
            if not self.gate.granted(lease):
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

    def pump(self, pool: Pool) -> None:
        """Give work to the connections that wait for some."""
        for _ in range(len(pool.free)):
            if not pool.lanes:
                return
            connection = pool.free.pop()
            connection.waiting = False
            self.refill(connection, b"")

    # Forth: from a ready row to bytes on a socket.

    def refill(self, connection: Connection, out: bytes, now_s: int = 0) -> None:
        """Write `out` and the messages for which the connection has room, at once.

        now_s  engine time, if the caller knows it
        """
        pool = connection.pool
        lanes = pool.lanes
        now_s = now_s or self.at_ns(_monotonic_ns()) // SECOND_NS
        parts = [out] if out else []
        gapped = None
        while connection.room() and (lease := lanes.alone or lanes.turn()) is not None:
            if lease.gated and not self.gate.open_for(lease, pool.index):
                self.deactivate(lease)
                continue
            if not lease.ready:
                self.deactivate(lease)
                self._hungry(lease)
                continue
            part = (self._named if lease.rows_max else self._message)(lease, connection, now_s)
            if part is None:
                continue
            parts.append(part)
            if lease.gated and lease.pace.gap_ns:
                gapped = lease.pace
                break
            if not connection.windowed:
                break  # in these modes there is room for one
        if parts:
            connection.write(parts[0] if len(parts) == 1 else b"".join(parts))
            if gapped is not None:
                gapped.handed_over(_monotonic_ns())
        elif not connection.flights and not connection.waiting and not connection.ended:
            pool.rest(connection)

    def _message(self, lease: Lease, connection: Connection, now_s: int) -> bytes | None:
        """The next message of a lease, recorded as SENDING; None if its row is passed over."""
        row = lease.ready.popleft()
        ledger = lease.ledger
        if ledger.a[row] & 15 != _CLAIMED:
            return None  # suppressed since
        lease.used += 1
        try:
            message = lease.composer.compose(lease.shard.fields(row), lease.keys[row << 4 : row + 1 << 4], now_s)
        except (ComposeError, MissingField) as error:
            record.unsendable(lease, row, f"cannot be composed: {error}", now_s)
            return None
        mail_from, rcpt_to, data, smtputf8 = message
        size = len(data)
        if size > connection.size_max or smtputf8:
            refusal = connection.refusal(size, smtputf8=smtputf8)
            if refusal:
                record.unsendable(lease, row, refusal, now_s)
                return None
        if connection.says_size and not smtputf8 and data.isascii():
            params = b"SIZE=%d" % size
        else:
            params = connection.features.params(data, smtputf8=smtputf8)
        gated = lease.gated
        now_ns = self.gate.await_due(lease) if gated else _monotonic_ns()
        if self._suppressions[0] != self.suppressions_seen or lease.order_now[0] != lease.order_word or not now_ns:
            lease.ready.appendleft(row)
            self._changed(lease)
            return None
        if gated:
            self.gate.spend(lease, now_ns)
        ledger.sending(row, now_s)
        lease.words[ATTEMPTED] += 1
        lease.in_flight += 1
        lease.dirty = True
        if not lease.first_attempt_ns:
            lease.first_attempt_ns = now_ns
        if lease.trace is not None:
            lease.trace += ATTEMPT.pack(now_ns, lease.offer.number)
        number = self._number = self._number + 1
        connection.left -= 1
        connection.used_ns = now_ns
        connection.flights.append((number, lease, row, now_ns))
        return connection.submit(number, mail_from, rcpt_to, data, params)

    def _named(self, lease: Lease, connection: Connection, now_s: int) -> bytes | None:
        """As `_message` for a lease under suspicion: the arena names the row meanwhile, should it end this process.

        An exception leaves the name where it is: that is such an end.
        """
        lease.words[AT_HAND] = lease.ready[0] + 1
        part = self._message(lease, connection, now_s)
        lease.words[AT_HAND] = 0
        return part

    def _changed(self, lease: Lease) -> None:
        """The broker said something since we last looked."""
        if self._suppressions[0] != self.suppressions_seen:
            self._news()
        if lease.order_now[0] != lease.order_word:
            self._reorder(lease)

    # Back: from replies to records.

    def conclude(self, connection: Connection, concluded: Sequence[Concluded], now_ns: int, now_s: int) -> None:
        """Record what became of messages, oldest first; ends the connection if one of them says so."""
        flights = connection.flights
        pool = connection.pool
        index = pool.index
        pool.done += len(concluded)
        pool.latency_ns = now_ns - flights[0][3]
        accepted = 0
        action = Action.KEEP
        for item in concluded:
            number, stage, reply, event = item
            submitted, lease, row, started_ns = flights.popleft()
            assert number == submitted, "conclusions come in the order of submission"
            if event is _OK and stage is _BODY:
                assert reply is not None
                record.sent(lease, row, reply, lease.places[index], now_s)
                self._record_us((now_ns - started_ns) // 1000)
                accepted += 1
            else:
                # What stood behind another message when the connection broke was not looked at.
                behind = stage is _MAIL and event in _UNHEARD and (connection.replied or item is not concluded[0])
                outcome = record.troubled(lease, row, item, lease.places[index], now_s, behind=bool(behind))
                pool.heard(outcome, item)
                connection.falter(outcome, item)
                if reply is not None:
                    if event in _JUDGED:
                        connection.turned_down()
                    self._record_us((now_ns - started_ns) // 1000)
                if outcome.action is not Action.KEEP:
                    action = outcome.action
            lease.last_conclusion_ns = now_ns
            lease.dirty = True
            lease.in_flight -= 1
            if not lease.in_flight and not lease.ready:
                self._hungry(lease)
        if accepted:
            connection.accepted(accepted)
        if action is not Action.KEEP:
            connection.break_off("lost")
