"""One connection to a relay, from the moment its session is open: bytes to transactions and back.

Mechanism only: what a conclusion means is `walk`'s to record, when to open another is `relays`' to say.

- One wake-up handles all replies that are there and writes once.  A window is refilled at each of them: to wait until
  half of it is free makes fewer and larger writes, and the relay waits more often (Postfix, one connection: 806
  against 890 messages/s).
- Nothing is written to a transport that still holds unsent bytes: `pause_writing` tells, with a limit of 1 byte, which
  also makes uvloop hand bytes to the socket at once instead of at the end of the loop's turn.  (With a limit of 0 a
  TLS transport pauses when it is empty, too.)
- No timer per message: `overdue` is asked by one periodic watchdog.
- Every message submitted is concluded, also when the connection breaks (`Transactions.lost`).
- Where it is not known how many refused recipients a relay bears, one with several goes on without windows: see
  `learnt.Patience`.
- The window begins at 1, doubles with each full window that was accepted, and begins anew after trouble: it never
  exceeds what the pool allows.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from actors.smtp.data import DataExchange
from actors.smtp.outcome import Outcome
from actors.smtp.rules import About
from actors.smtp.session import Session
from actors.smtp.transaction import Concluded, Event, Mode, Stage, Transactions

if TYPE_CHECKING:
    from actors.sender.lease import Lease
    from actors.sender.relays import Pool
    from actors.sender.walk import Walk

__all__ = ["Connection", "Flight"]

UNLIMITED: Final = 1 << 60
SECOND_NS: Final = 1_000_000_000
FAREWELL_NS: Final = 2 * SECOND_NS  # how long a relay may take to say 221, whatever its deadlines

# Refusals that are about one recipient; they say nothing of what the relay can carry.
_OF_A_MESSAGE: Final = frozenset({Stage.RCPT, Stage.DATA, Stage.BODY})  # MAIL had been answered
_ENDS: Final = frozenset(Event) - {Event.OK, Event.TRANSIENT, Event.PERMANENT, Event.BAD_SEQUENCE}
_PERSONAL: Final = frozenset({About.RECIPIENT, About.MAILBOX_FULL, About.GREYLISTING})
_monotonic_ns = time.monotonic_ns

Flight = tuple[int, "Lease", int, int]  # number, lease, row, monotonic time at which its MAIL was handed over


class Connection(asyncio.Protocol):
    """The protocol that takes a session's transport over.

    flights    messages under way, oldest first
    left       messages it may still take
    replied    messages the relay has judged
    refused    of those in doubt of its patience, how many it refused; refused_last: the last one
    closed_after  messages it had judged when the relay closed it; 0 = none, or it was we who closed it
    dismissed  we said goodbye, not the relay
    waiting    whether it stands in its pool's `free`
    ended      we have closed it; only `connection_lost` is still to come
    opened_ns  monotonic time at which its session stood
    used_ns    monotonic time at which it last wrote or read something
    windowed   several messages may be in flight at once
    says_size  the relay wants SIZE; size_max: the largest message it takes
    submit     of its transactions
    """

    __slots__ = (
        "_at_ns",
        "_ended_at",
        "_heard_ns",
        "_own_window",
        "_patience_ns",
        "_receive",
        "_sober",
        "_socket",
        "_taken",
        "_transport",
        "_walk",
        "blocked",
        "closed_after",
        "dismissed",
        "ended",
        "features",
        "flights",
        "left",
        "opened_ns",
        "pool",
        "refused",
        "refused_last",
        "replied",
        "says_size",
        "size_max",
        "submit",
        "transactions",
        "used_ns",
        "waiting",
        "windowed",
    )

    def __init__(self, walk: Walk, pool: Pool, session: Session, limit: int) -> None:
        self._walk = walk
        self.pool = pool
        self._transport = session.transport
        self.features = session.features
        self.transactions = Transactions(session.mode)
        self._receive = self.transactions.receive
        self.submit = self.transactions.submit
        self.windowed = session.mode is Mode.BDAT
        self._own_window = 1
        self._taken = 0  # messages accepted since the window last grew
        self.refused = 0
        self.refused_last = False
        self._sober = False  # windows are over, as soon as nothing is in flight
        self.says_size = session.features.size is not None
        self.size_max = session.features.size or UNLIMITED
        self._at_ns = walk.at_ns
        self.flights: deque[Flight] = deque()
        self.left = limit or UNLIMITED
        self.blocked = False
        self.ended = False
        self.waiting = False
        self.replied = self.closed_after = 0
        self._ended_at: Stage | None = None  # stage of the message at which the connection broke
        self.dismissed = False
        self._patience_ns = UNLIMITED
        self.used_ns = self.opened_ns = self._heard_ns = _monotonic_ns()  # heard: when the last whole reply had come
        endpoint = self._transport.get_extra_info("socket")
        self._socket = endpoint if endpoint is not None and endpoint.family != socket.AF_UNIX else None
        self._transport.set_write_buffer_limits(high=1, low=0)

    # What the walk asks and orders.

    def room(self) -> int:
        """Messages that may be submitted right now, one after the other."""
        if self.blocked or self.ended or self.dismissed or self.left <= 0 or (self._sober and self.windowed):
            return 0
        return self.transactions.room()

    def refusal(self, size: int, *, smtputf8: bool) -> str:
        """Why the relay cannot take such a message, or ""."""
        if size > self.size_max:
            return f"the message has {size} bytes, relay `{self.pool.relay.name}` takes {self.size_max}"
        if smtputf8 and not self.features.smtputf8:
            return f"relay `{self.pool.relay.name}` takes no address beyond ASCII (SMTPUTF8)"
        return ""

    def write(self, data: bytes) -> None:
        """Hand bytes to the socket; from now on the relay owes an answer."""
        self._transport.write(data)

    def accepted(self, n: int) -> None:
        """The relay took n messages: a full window of them lets the window double."""
        self.replied += n
        self.refused_last = False
        if self.windowed:
            self._taken += n
            if self._taken >= self._own_window:
                self._taken = 0
                self._own_window = min(2 * self._own_window, self.pool.window)
            self.transactions.window = min(self.pool.window, self._own_window)

    def falter(self, outcome: Outcome, concluded: Concluded) -> None:
        """A message was not accepted: unless that is about its recipient, begin with a small window again."""
        if concluded.event in _ENDS and self._ended_at is None:
            self._ended_at = concluded.stage
        if outcome.blame not in _PERSONAL:
            self._taken = 0
            self._own_window = self.transactions.window = 1

    def turned_down(self) -> None:
        """The relay refused a message: nobody may be in flight in a window when it has had enough of that."""
        self.replied += 1
        if not (self.windowed or self._sober):
            return
        self.refused += 1
        self.refused_last = True
        patience, now_ns = self.pool.patience, _monotonic_ns()
        if self._sober:
            # Bore it alone. Its place is for one with windows again.
            if (not self.windowed and patience.bore(self.refused)) or patience.impatient(now_ns):
                self.left = 0
            return
        most = patience.most(now_ns)
        if most is not None and self.refused >= most:
            if patience.impatient(now_ns):
                self.left = 0
            self._sober = True

    def _sober_up(self) -> bytes:
        """From here on no body leaves before the relay asks for it; what to write first."""
        exchange = DataExchange(Mode.PIPELINING)
        self.transactions = exchange
        self._receive, self.submit = exchange.receive, exchange.submit
        self.windowed = False
        return exchange.reset()

    @property
    def made_no_progress(self) -> bool:
        """Whether it ended before the relay had judged one message, and not over a message nor because we let it go."""
        return not self.replied and not self.dismissed and self._ended_at not in _OF_A_MESSAGE

    @property
    def _carried(self) -> int:
        """Messages after which the relay has had enough; 0 if it was one of them that ended it."""
        return 0 if self._ended_at in _OF_A_MESSAGE else self.replied

    def leave(self) -> None:
        """Say QUIT if nothing is in flight and the relay still listens; the transport closes when it has answered."""
        self.dismissed = True
        self._patience_ns = FAREWELL_NS
        farewell = self.transactions.quit()
        self.used_ns = self._heard_ns = _monotonic_ns()
        if farewell:
            self._transport.write(farewell)
        else:
            self.ended = True
            self._transport.close()

    def break_off(self, why: str) -> None:
        """End it now: conclude what is in flight ("lost" or "timeout") and drop the transport."""
        if self.ended:
            return
        self.ended = True
        if self.transactions.closing and not self.dismissed:
            self.closed_after = self._carried  # the relay had said goodbye
        self._conclude_rest(why)
        self._transport.abort()

    def overdue(self, now_ns: int, limits_ns: Mapping[Stage, int]) -> bool:
        """Whether the relay owes an answer for longer than it may take."""
        stage = self.transactions.stage
        if stage is Stage.IDLE:
            return False
        # Of the reply that is awaited: neither some bytes of it nor messages behind it put its end off.
        since_ns = max(self._heard_ns, self.flights[0][3]) if self.flights else self._heard_ns
        return now_ns - since_ns > min(limits_ns[stage], self._patience_ns)

    # What the transport tells.

    def data_received(self, data: bytes) -> None:
        """Replies: conclude what they answer, then write what goes on and what comes next, at once."""
        self.used_ns = now_ns = _monotonic_ns()
        now_s = self._at_ns(now_ns) // SECOND_NS
        transactions = self.transactions
        stage = transactions.stage
        concluded, out = self._receive(data)
        if concluded or transactions.stage is not stage:
            self._heard_ns = now_ns
        if concluded:
            self._walk.conclude(self, concluded, now_ns, now_s)
        if transactions.closing:
            self._hang_up(out)
            return
        if self._sober and self.windowed and not self.flights and self.left > 0:
            out = self._sober_up()
        self._walk.refill(self, out, now_s)
        # More is owed, and nothing was written that could carry an ACK.
        if self.used_ns == now_ns and self.flights and not out:
            self._acknowledge()

    def _acknowledge(self) -> None:
        """Some of the replies have come, and we have nothing to say: let the kernel say ACK now.

        A relay that writes its replies one by one under Nagle's algorithm sends the next only then, and a delayed ACK
        would cost 40 ms a message (measured: 21 messages/s a connection instead of thousands).
        """
        if self._socket is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _hang_up(self, out: bytes) -> None:
        """The relay said goodbye, or broke the protocol, or answered our QUIT."""
        if self.ended:
            return
        self.ended = True
        self._conclude_rest("lost")
        self.closed_after = 0 if self.dismissed else self._carried
        if out:
            self._transport.write(out)
        self._transport.close()

    def _conclude_rest(self, why: str) -> None:
        rest: list[Concluded] = self.transactions.lost(why)
        if rest:
            now_ns = _monotonic_ns()
            self._walk.conclude(self, rest, now_ns, self._at_ns(now_ns) // SECOND_NS)

    def eof_received(self) -> bool:
        """The relay closed its half: there is nothing more to wait for."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, whoever ended it."""
        self._conclude_rest("lost")
        if not self.ended:
            self.ended = True
            self.closed_after = self._carried
        self.pool.lost(self, "" if exc is None else str(exc))

    def pause_writing(self) -> None:
        """The socket is full."""
        self.blocked = True

    def resume_writing(self) -> None:
        """The socket took everything."""
        self.blocked = False
        if not self.ended and not self.dismissed:
            self._walk.refill(self, b"")
