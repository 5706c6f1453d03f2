"""One connection of the rehearsal server: hands what arrives to its dialogue, and sends the replies when they are due.

All that arrived in one read is answered in one write, unless the server is slow on request (`held`).

Invariants
- Replies leave in the order of their commands, delayed or not; a connection is closed only after the replies before it.
- A session is counted once when it begins and once when it ends, however that happens.
"""

from __future__ import annotations

import asyncio
from time import perf_counter_ns
from typing import cast

from actors.sink.dialogue import Dialogue
from actors.sink.held import Held
from actors.sink.magic import Then
from actors.sink.manners import Manners
from actors.sink.policy import Policy
from actors.sink.record import Record

__all__ = ["Conversation"]

_LINGER_S = 2.0  # for a client to read the last replies and hang up


class Conversation(asyncio.Protocol):
    """The server's side of one connection; it lists itself in `sessions` while it lasts."""

    def __init__(self, manners: Manners, policy: Policy, record: Record, sessions: set[Conversation]) -> None:
        self._manners = manners
        self._record = record
        self._sessions = sessions
        self._dialogue = Dialogue(manners, policy, record)
        self._transport: asyncio.Transport
        self._open = False
        self._held: Held | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._upgrade: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not subclasses of asyncio's
        self._open = True
        record, manners, dialogue = self._record, self._manners, self._dialogue
        record.opened()
        self._sessions.add(self)
        if self._transport.get_extra_info("ssl_object") is not None:
            dialogue.encrypted = True
            record.counts["tls_sessions"] += 1
        if manners.delays:
            number = record.counts["sessions"]
            self._held = Held(manners.delays, number, lambda: record.sessions_open, self._leave_late)
        crowded = 0 < manners.sessions_max < record.sessions_open
        self._answer([dialogue.greeting(crowded=crowded)])

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        """Forget the session; what it had not finished was not accepted."""
        if not self._open:
            return
        self._open = False
        self._dialogue.forget()
        if self._linger is not None:
            self._linger.cancel()
        if self._held is not None:
            self._held.clear()
        self._record.closed()
        self._sessions.discard(self)

    def pause_writing(self) -> None:
        """The client does not read: stop reading from it, so that replies do not pile up."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def end(self) -> None:
        """Close now: the sink stops."""
        self._dialogue.forget()
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Everything that arrived."""
        dialogue = self._dialogue
        if dialogue.then is not Then.GO_ON:
            return
        began_ns = perf_counter_ns()
        replies = dialogue.receive(data)
        if replies or dialogue.then is not Then.GO_ON:
            self._answer(replies)
            if self._held is None:
                self._record.answered(perf_counter_ns() - began_ns)

    def _answer(self, replies: list[bytes]) -> None:
        """Send replies now or, where the server is slow, in their turn."""
        held, then = self._held, self._dialogue.then
        if held is None:
            self._leave(b"".join(replies), then)
            return
        start = 0
        if self._manners.delays.capacity is not None:  # each message costs its time
            for end in self._dialogue.ends:
                held.add(b"".join(replies[start:end]), Then.GO_ON, serves=True)
                start = end
        if start < len(replies) or then is not Then.GO_ON:
            held.add(b"".join(replies[start:]), then, serves=False)

    def _leave_late(self, replies: bytes, then: Then, waited_s: float) -> None:
        self._record.answered(int(waited_s * 1e9))
        self._leave(replies, then)

    def _leave(self, replies: bytes, then: Then) -> None:
        transport = self._transport
        if replies and not transport.is_closing():
            transport.write(replies)
        if then is Then.CLOSE:
            self._close(transport)
        elif then is Then.DROP:
            transport.close()
        elif then is Then.TLS:
            transport.pause_reading()  # what comes now is TLS's
            self._upgrade = asyncio.get_running_loop().create_task(self._encrypt())

    def _close(self, transport: asyncio.Transport) -> None:
        """Say no more and let the client go: closing on top of unread bytes would take the last replies away."""
        if not transport.can_write_eof() or transport.is_closing():
            transport.close()
            return
        transport.write_eof()
        if not transport.is_closing():
            self._linger = asyncio.get_running_loop().call_later(_LINGER_S, transport.abort)

    async def _encrypt(self) -> None:
        """The handshake after STARTTLS."""
        context = self._manners.starttls
        assert context is not None, "STARTTLS was offered"
        loop = asyncio.get_running_loop()
        try:
            encrypted = await loop.start_tls(self._transport, self, context, server_side=True)
        except (OSError, EOFError):  # ssl.SSLError is an OSError
            encrypted = None
        if encrypted is None or not self._open:
            self._transport.abort()
            self.connection_lost(None)
            return
        self._transport = encrypted
        self._record.counts["tls_sessions"] += 1
        self._dialogue.encrypt()
