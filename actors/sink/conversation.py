"""One SMTP session of the rehearsal server: reads groups of commands and messages, answers each group in one write.

Hot: one call of `data_received` handles all that arrived, and a client that pipelines `body . MAIL RCPT DATA`
(RFC 2920) costs one match and one search per message. It does not decide who is refused (`policy`) and does not
remember anything beyond the session (`record`).

Invariants
- Replies leave in the order of their commands, delayed or not; a connection is closed only after the replies before it.
- After the decision to close, nothing more is read and nothing more is counted.
- No input makes the session hold more than SIZE_MAX bytes of a message or LINE_MAX of a command.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from dataclasses import dataclass
from typing import cast

from actors.sink.policy import Fate, Point, Policy
from actors.sink.record import Record

__all__ = ["SIZE_MAX", "Conversation", "Manners"]

SIZE_MAX = 52_428_800  # bytes a message, announced as SIZE (RFC 1870)
LINE_MAX = 4096  # bytes a command; RFC 5321 4.5.3.1.4 asks for 512, extensions add to it

_END = b"\r\n.\r\n"
_GROUP_RE = re.compile(rb"MAIL FROM:<([^>\r\n]*)>[^\r\n]*\r\nRCPT TO:<([^>\r\n]+)>[^\r\n]*\r\nDATA\r\n", re.IGNORECASE)
_PATH_RE = re.compile(rb"(?:MAIL FROM|RCPT TO):\s*<([^>\r\n]*)>(.*)", re.IGNORECASE)
_SIZE_RE = re.compile(rb"\bSIZE=(\d{1,20})\b", re.IGNORECASE)

_GO_AHEAD = b"354 End data with <CR><LF>.<CR><LF>\r\n"
_MAIL_OK = b"250 2.1.0 Ok\r\n"
_RCPT_OK = b"250 2.1.5 Ok\r\n"
_GROUP_OK = _MAIL_OK + _RCPT_OK + _GO_AHEAD
_TOO_BIG = b"552 5.3.4 Message size exceeds fixed limit\r\n"
_TOO_LONG = b"500 5.5.2 Line too long\r\n"


@dataclass(frozen=True, slots=True)
class Manners:
    """How the server behaves towards everybody.

    latency_s    each group of replies waits this long, in order
    pipelining   announce PIPELINING (what is pipelined all the same is understood)
    name         host name in the greeting
    """

    latency_s: float = 0.0
    pipelining: bool = True
    name: str = "sink.example.com"


class Conversation(asyncio.Protocol):
    """The server's side of one connection; it lists itself in `sessions` while it lasts."""

    def __init__(self, manners: Manners, policy: Policy, record: Record, sessions: set[Conversation]) -> None:
        self._sessions = sessions
        self._manners = manners
        self._policy = policy
        self._record = record
        self._transport: asyncio.Transport
        self._rest = b""
        self._ending = False
        self._later: deque[tuple[bytes, bool]] = deque()
        self._sender: bytes | None = None
        self._recipients: list[bytes] = []
        self._fate: Fate | None = None  # of the transaction, at DATA or after the body
        self._in_body = False
        self._parts: list[bytes] = []
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not subclasses of asyncio's
        self._record.opened()
        self._sessions.add(self)
        self._answer(f"220 {self._manners.name} ESMTP sink\r\n".encode())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        """Forget the session; what it had not finished was not accepted."""
        self._ending = True
        self._later.clear()
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
        self._ending = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Everything that arrived, answered in one write."""
        if self._ending:
            return
        buffer = self._rest + data if self._rest else data
        position = 0
        out: list[bytes] = []
        while not self._ending:
            before = position
            position = self._body(buffer, position, out) if self._in_body else self._commands(buffer, position, out)
            if position == before:
                break
        self._rest = buffer[position:]
        if len(self._rest) > LINE_MAX and not self._ending:
            out.append(_TOO_LONG)
            self._ending = True
        if out or self._ending:
            self._answer(b"".join(out))

    def _answer(self, replies: bytes) -> None:
        """Send replies now or, with latency, in their turn."""
        latency_s = self._manners.latency_s
        if latency_s:
            self._later.append((replies, self._ending))
            # Timers of equal length may fire in any order; whichever fires takes the oldest answer.
            asyncio.get_running_loop().call_later(latency_s, self._answer_oldest)
            return
        self._send(replies, self._ending)

    def _answer_oldest(self) -> None:
        if self._later:
            self._send(*self._later.popleft())

    def _send(self, replies: bytes, close: bool) -> None:
        transport = self._transport
        if replies and not transport.is_closing():
            transport.write(replies)
        if close:
            transport.close()

    def _body(self, buffer: bytes, position: int, out: list[bytes]) -> int:
        """Take a message, or as much of it as is here; returns the new position."""
        if not self._size and buffer.startswith(b".\r\n", position):
            self._finish(b"", out)
            return position + 3
        stop = buffer.find(_END, position)
        if stop < 0:
            keep = max(position, len(buffer) - 4)  # the end may lie across two reads
            self._size += keep - position
            if self._size <= SIZE_MAX:
                self._parts.append(buffer[position:keep])
            else:
                self._parts.clear()
            return keep
        body = buffer[position : stop + 2]
        if self._parts:
            self._parts.append(body)
            body = b"".join(self._parts)
            self._parts.clear()
        self._size += stop + 2 - position
        self._finish(body, out)
        return stop + 5

    def _finish(self, body: bytes, out: list[bytes]) -> None:
        """Answer the end of a message."""
        sender, recipients, fate = self._sender, self._recipients, self._fate
        too_big = self._size > SIZE_MAX
        self._reset()
        if too_big:
            self._record.counts["refused"] += 1
            out.append(_TOO_BIG)
        elif fate is not None:
            self._suffer(fate, out)
        else:
            record = self._record
            for recipient in recipients:
                record.accepted(sender or b"", recipient, body)
            out.append(b"250 2.0.0 Ok: queued as %X\r\n" % record.counts["messages"])

    def _suffer(self, fate: Fate, out: list[bytes]) -> None:
        """Let a recipient's fate happen."""
        self._record.counts[fate.counter] += 1
        if fate.reply is not None:
            out.append(fate.reply)
        self._ending = fate.close

    def _reset(self) -> None:
        self._sender = None
        self._recipients = []
        self._fate = None
        self._in_body = False
        self._size = 0

    def _commands(self, buffer: bytes, position: int, out: list[bytes]) -> int:
        """One group or one command; returns the new position, the same if the line is not complete."""
        if self._sender is None:
            group = _GROUP_RE.match(buffer, position)
            if group is not None and _SIZE_RE.search(group[0]) is None:
                recipient = group[2]
                if self._policy.ordinary(recipient):
                    self._sender = group[1]
                    self._recipients = [recipient]
                    self._in_body = True
                    out.append(_GROUP_OK)
                    return group.end()
        stop = buffer.find(b"\r\n", position)
        if stop < 0:
            return position
        self._command(buffer[position:stop], out)
        return stop + 2

    def _command(self, line: bytes, out: list[bytes]) -> None:
        verb = line.split(b" ", 1)[0].upper()
        if verb == b"MAIL":
            out.append(self._mail(line))
        elif verb == b"RCPT":
            self._rcpt(line, out)
        elif verb == b"DATA":
            self._data(out)
        elif verb in (b"EHLO", b"HELO"):
            self._reset()
            out.append(self._hello(verb))
        elif verb == b"QUIT":
            out.append(b"221 2.0.0 Bye\r\n")
            self._ending = True
        elif verb == b"RSET":
            self._reset()
            out.append(b"250 2.0.0 Ok\r\n")
        elif verb == b"NOOP":
            out.append(b"250 2.0.0 Ok\r\n")
        elif verb == b"VRFY":
            out.append(b"252 2.0.0 Send some mail and see\r\n")
        else:
            out.append(b"502 5.5.1 Command not implemented\r\n")

    def _hello(self, verb: bytes) -> bytes:
        name = self._manners.name.encode()
        if verb == b"HELO":
            return b"250 %b\r\n" % name
        keywords = [b"SIZE %d" % SIZE_MAX, b"8BITMIME", b"SMTPUTF8", b"ENHANCEDSTATUSCODES"]
        if self._manners.pipelining:
            keywords.insert(0, b"PIPELINING")
        lines = [name, *keywords]
        return b"".join(b"250-%b\r\n" % line for line in lines[:-1]) + b"250 %b\r\n" % lines[-1]

    def _mail(self, line: bytes) -> bytes:
        path = _PATH_RE.fullmatch(line)
        if path is None:
            return b"501 5.5.4 Syntax: MAIL FROM:<address>\r\n"
        if self._sender is not None:
            return b"503 5.5.1 Sender already given\r\n"
        size = _SIZE_RE.search(path[2])
        if size is not None and int(size[1]) > SIZE_MAX:
            self._record.counts["refused"] += 1
            return _TOO_BIG
        self._sender = path[1]
        return _MAIL_OK

    def _rcpt(self, line: bytes, out: list[bytes]) -> None:
        path = _PATH_RE.fullmatch(line)
        if path is None or not path[1]:
            out.append(b"501 5.5.4 Syntax: RCPT TO:<address>\r\n")
            return
        if self._sender is None:
            out.append(b"503 5.5.1 Need MAIL first\r\n")
            return
        fate = self._policy.fate(path[1])
        if fate is not None and fate.point is Point.RCPT:
            self._suffer(fate, out)
            return
        self._fate = fate or self._fate
        self._recipients.append(path[1])
        out.append(_RCPT_OK)

    def _data(self, out: list[bytes]) -> None:
        fate = self._fate
        if self._sender is None:
            out.append(b"503 5.5.1 Need MAIL first\r\n")
        elif not self._recipients:
            out.append(b"554 5.5.1 No valid recipients\r\n")
        elif fate is not None and fate.point is Point.DATA:
            self._reset()
            self._suffer(fate, out)
        else:
            self._in_body = True
            out.append(_GO_AHEAD)
