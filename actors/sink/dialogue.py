"""What the rehearsal server says: the server's side of SMTP (RFC 5321, 2920, 3030), one object a connection.

Sans-IO: bytes in, replies out, and what is to become of the connection. Hot: a client that pipelines
`body . MAIL RCPT DATA` or windows of `RSET MAIL RCPT BDAT n LAST body` costs one match a message, and one search where
there is a dot to be found. It does not decide who is refused (`policy`) and does not remember anything beyond the
connection (`record`).

Invariants
- Replies come in the order of the commands, and are the same however the bytes are cut.
- After the decision to close, to hang or to encrypt, nothing more is read and nothing more is counted; what a client
  sent behind STARTTLS is dropped (RFC 3207 section 4.2).
- No input makes it hold more than SIZE bytes of a message, LINE_MAX of a command, RECIPIENTS_MAX recipients.
- The bytes of a chunk are read even where it is refused: they are never taken for commands.
"""

from __future__ import annotations

import re

from actors.sink.auth import Exchange
from actors.sink.body import Body
from actors.sink.magic import Fate, Point, Then
from actors.sink.manners import Manners
from actors.sink.policy import Policy
from actors.sink.record import Record

__all__ = ["Dialogue"]

LINE_MAX = 4096  # bytes a command; RFC 5321 4.5.3.1.4 asks for 512, extensions add to it
RECIPIENTS_MAX = 1000  # a message; RFC 5321 4.5.3.1.8 asks for 100

_PATH_RE = re.compile(rb"(?:MAIL FROM|RCPT TO):\s*<([^>\r\n]*)>(.*)", re.IGNORECASE)
_CHUNK_RE = re.compile(rb"BDAT +(\d{1,20})( +LAST)? *", re.IGNORECASE)
_CHUNK_SIZE_RE = re.compile(rb"BDAT +(\d{1,20})(?: .*)?", re.IGNORECASE)

_OK = b"250 2.0.0 Ok\r\n"
_MAIL_OK = b"250 2.1.0 Ok\r\n"
_RCPT_OK = b"250 2.1.5 Ok\r\n"
_GO_AHEAD = b"354 End data with <CR><LF>.<CR><LF>\r\n"
_GROUP_OK = _MAIL_OK + _RCPT_OK + _GO_AHEAD
_QUEUED = b"250 2.0.0 Ok: queued as %X\r\n"
_WINDOW_OK = _OK + _MAIL_OK + _RCPT_OK + _QUEUED
_TOO_BIG = b"552 5.3.4 Message size exceeds fixed limit\r\n"
_TOO_LONG = b"500 5.5.2 Line too long\r\n"
_NEED_MAIL = b"503 5.5.1 Need MAIL first\r\n"
_NO_RECIPIENTS = b"554 5.5.1 No valid recipients\r\n"
_BDAT_BEGUN = b"503 5.5.1 BDAT has begun\r\n"
_BDAT_SYNTAX = b"501 5.5.4 Syntax: BDAT count [LAST]\r\n"
_NOT_IMPLEMENTED = b"502 5.5.1 Command not implemented\r\n"


class Dialogue:
    """One connection's.

    then       what is to become of the connection after the replies so far
    ends       where in the replies of the last `receive` a message had been taken: so many replies up to its end
    encrypted  set by whoever owns the connection
    """

    def __init__(self, manners: Manners, policy: Policy, record: Record) -> None:
        self._manners = manners
        self._policy = policy
        self._record = record
        self._group = manners.group()
        self.then = Then.GO_ON
        self.ends: list[int] = []
        self.encrypted = False
        self._rest = b""
        self._may_send = manners.credentials is None
        self._exchange: Exchange | None = None
        self._taken = 0  # messages on this connection
        self._sender: bytes | None = None
        self._recipients: list[bytes] = []
        self._fate: Fate | None = None  # of the transaction, at DATA or later
        self._refusal: bytes | None = None  # of the chunk under way
        self._body = Body(manners.size_max)

    def greeting(self, *, crowded: bool) -> bytes:
        """The first line; with `crowded` it is a refusal."""
        if not crowded:
            return f"220 {self._manners.name} ESMTP sink\r\n".encode()
        self._record.counts["turned_away"] += 1
        self.then = Then.CLOSE
        return b"421 4.7.0 Too many connections, try again later\r\n"

    def receive(self, data: bytes) -> list[bytes]:
        """Everything that arrived; returns the replies to it."""
        out: list[bytes] = []
        self.ends.clear()
        buffer = self._rest + data if self._rest else data
        position = 0
        body, here = self._body, len(buffer)
        while position < here and self.then is Then.GO_ON:
            before = position
            if body.dotted:
                position = self._dotted(buffer, position, out)
            elif body.left is not None:
                position = self._chunk(buffer, position, out)
            else:
                position = self._commands(buffer, position, out)
            if position == before:
                break
        self._rest = buffer[position:] if self.then is Then.GO_ON else b""
        if len(self._rest) > LINE_MAX:
            out.append(_TOO_LONG)
            self.then = Then.CLOSE
        return out

    def encrypt(self) -> None:
        """TLS is active: the dialogue begins anew (RFC 3207 section 4.2)."""
        self.encrypted = True
        self._reset()
        self.then = Then.GO_ON

    def forget(self) -> None:
        """The connection is gone."""
        self.then = Then.CLOSE
        self._reset()

    # the body

    def _dotted(self, buffer: bytes, position: int, out: list[bytes]) -> int:
        """Take a message, or as much of it as is here; returns the new position."""
        if self._fate is not None and self._cut_short(self._fate, position < len(buffer), out):
            return position
        position, body = self._body.take_dotted(buffer, position)
        if body is not None:
            self._finish(body, out, stuffed=True)
        return position

    def _chunk(self, buffer: bytes, position: int, out: list[bytes]) -> int:
        """Take a chunk, or as much of it as is here; returns the new position."""
        if self._fate is not None and self._cut_short(self._fate, position < len(buffer), out):
            return position
        body = self._body
        position = body.take_chunk(buffer, position)
        if body.left == 0:
            self._end_chunk(out)
        return position

    def _cut_short(self, fate: Fate, arriving: bool, out: list[bytes]) -> bool:
        """True if the fate is to close in the middle of the body, which is now."""
        if fate.point is not Point.DURING or not arriving:
            return False
        self._suffer(fate, out)
        return True

    def _end_chunk(self, out: list[bytes]) -> None:
        body, refusal = self._body, self._refusal
        body.left = None
        self._refusal = None
        if refusal is not None:
            out.append(refusal)
        elif body.too_big and not body.last:
            self._record.counts["refused"] += 1
            self._reset()
            out.append(_TOO_BIG)
        elif body.last:
            self._finish(body.held(), out, stuffed=False)
        else:
            out.append(_OK)

    def _finish(self, body: bytes, out: list[bytes], *, stuffed: bool) -> None:
        """Answer the end of a message."""
        sender, recipients, fate = self._sender, self._recipients, self._fate
        too_big = self._body.too_big
        self._reset()
        if too_big:
            self._record.counts["refused"] += 1
            out.append(_TOO_BIG)
        elif fate is not None:
            self._suffer(fate, out)
        else:
            for recipient in recipients:
                self._record.accepted(sender or b"", recipient, body, stuffed=stuffed)
            out.append(_QUEUED % self._record.counts["messages"])
            self._count(out)

    def _count(self, out: list[bytes]) -> None:
        """A message more on this connection, just answered."""
        self._taken += 1
        self.ends.append(len(out))
        if self._taken == self._manners.close_after:
            self.then = Then.CLOSE

    def _suffer(self, fate: Fate, out: list[bytes]) -> None:
        """Let a recipient's fate happen."""
        self._record.counts[fate.counter] += 1
        if fate.reply is not None:
            out.append(fate.reply)
        self.then = fate.then

    def _reset(self) -> None:
        self._sender = None
        self._recipients = []
        self._fate = self._refusal = None
        self._body.reset()

    # commands

    def _commands(self, buffer: bytes, position: int, out: list[bytes]) -> int:
        """One group or one command; returns the new position, the same if the line is not complete."""
        group = self._group.match(buffer, position) if self._may_send and self._exchange is None else None
        if group is not None and (self._sender is None or group[1] is not None):
            return self._take_group(group, buffer, out)
        stop = buffer.find(b"\r\n", position)
        if stop < 0:
            return position
        line = buffer[position:stop]
        if self._exchange is not None:
            self._log_in(self._exchange, self._exchange.answer(line), out)
        else:
            self._command(line, out)
        return stop + 2

    def _take_group(self, group: re.Match[bytes], buffer: bytes, out: list[bytes]) -> int:
        """`[RSET] MAIL RCPT` and DATA or the last chunk, with its bytes if they are here; returns the new position."""
        reset, sender, recipient, chunk = group.groups()
        fate = self._policy.fate(recipient)
        size = int(chunk) if chunk is not None else 0
        stop = group.end()
        if reset is not None:
            self._reset()
        whole = chunk is not None and stop + size <= len(buffer) and size <= self._manners.size_max
        if whole and fate is None and reset is not None:
            self._record.accepted(sender, recipient, buffer[stop : stop + size], stuffed=False)
            out.append(_WINDOW_OK % self._record.counts["messages"])
            self._count(out)
            return stop + size
        if reset is not None:
            out.append(_OK)
        self._sender = sender
        if fate is None and chunk is None:
            self._recipients.append(recipient)
            self._body.dotted = True
            out.append(_GROUP_OK)
            return stop
        out.append(_MAIL_OK)
        self._receive_for(recipient, fate, out)
        if self.then is not Then.GO_ON:
            return stop
        if chunk is None:
            self._data(out)
        else:
            self._begin_chunk(size, last=True, out=out)
        return stop

    def _command(self, line: bytes, out: list[bytes]) -> None:
        verb = line.split(b" ", 1)[0].upper()
        match verb:
            case b"MAIL":
                out.append(self._mail(line))
            case b"RCPT":
                self._rcpt(line, out)
            case b"DATA":
                self._data(out)
            case b"BDAT":
                self._bdat(line, out)
            case b"EHLO":
                self._reset()
                out.append(self._manners.hello(encrypted=self.encrypted))
            case b"HELO":
                self._reset()
                out.append(b"250 %b\r\n" % self._manners.name.encode())
            case b"RSET":
                self._reset()
                out.append(_OK)
            case b"QUIT":
                out.append(b"221 2.0.0 Bye\r\n")
                self.then = Then.CLOSE
            case b"STARTTLS" if self._manners.starttls is not None:
                self._starttls(out)
            case b"AUTH" if self._manners.credentials is not None:
                self._auth(line, out)
            case b"NOOP":
                out.append(_OK)
            case b"VRFY":
                out.append(b"252 2.0.0 Send some mail and see\r\n")
            case _:
                out.append(_NOT_IMPLEMENTED)

    def _starttls(self, out: list[bytes]) -> None:
        if self.encrypted:
            out.append(b"503 5.5.1 TLS is active\r\n")
            return
        out.append(b"220 2.0.0 Ready to start TLS\r\n")
        self.then = Then.TLS

    def _auth(self, line: bytes, out: list[bytes]) -> None:
        credentials = self._manners.credentials
        assert credentials is not None, "AUTH was offered"
        if self._manners.starttls is not None and not self.encrypted:
            out.append(b"538 5.7.11 Encryption required\r\n")
        elif self._may_send or self._sender is not None:
            out.append(b"503 5.5.1 Not now\r\n")
        else:
            exchange = Exchange(credentials)
            self._log_in(exchange, exchange.begin(line), out)

    def _log_in(self, exchange: Exchange, reply: bytes, out: list[bytes]) -> None:
        out.append(reply)
        self._exchange = None if exchange.over else exchange
        if exchange.over:
            self._may_send = exchange.accepted
            self._record.counts["logins" if exchange.accepted else "logins_refused"] += 1

    def _mail(self, line: bytes) -> bytes:
        if not self._may_send:
            return b"530 5.7.0 Authentication required\r\n"
        path = _PATH_RE.fullmatch(line)
        if path is None:
            return b"501 5.5.4 Syntax: MAIL FROM:<address>\r\n"
        if self._sender is not None:
            return b"503 5.5.1 Sender already given\r\n"
        refusal = self._manners.refusal(path[2])
        if refusal is not None:
            self._record.counts["refused"] += 1
            return refusal
        self._sender = path[1]
        return _MAIL_OK

    def _rcpt(self, line: bytes, out: list[bytes]) -> None:
        path = _PATH_RE.fullmatch(line)
        if path is None or not path[1]:
            out.append(b"501 5.5.4 Syntax: RCPT TO:<address>\r\n")
        elif self._sender is None:
            out.append(_NEED_MAIL)
        elif self._body.chunked:
            out.append(_BDAT_BEGUN)
        elif len(self._recipients) >= RECIPIENTS_MAX:
            out.append(b"452 4.5.3 Too many recipients\r\n")
        else:
            self._receive_for(path[1], self._policy.fate(path[1]), out)

    def _receive_for(self, recipient: bytes, fate: Fate | None, out: list[bytes]) -> None:
        """Take a recipient, or let its fate happen if it does so here."""
        if fate is not None and fate.point is Point.RCPT:
            self._suffer(fate, out)
            return
        self._fate = fate or self._fate
        self._recipients.append(recipient)
        out.append(_RCPT_OK)

    def _data(self, out: list[bytes]) -> None:
        fate = self._fate
        if self._sender is None:
            out.append(_NEED_MAIL)
        elif not self._recipients:
            out.append(_NO_RECIPIENTS)
        elif self._body.chunked:
            out.append(_BDAT_BEGUN)
        elif fate is not None and fate.point is Point.DATA:
            self._reset()
            self._suffer(fate, out)
        else:
            self._body.dotted = True
            out.append(_GO_AHEAD)

    def _bdat(self, line: bytes, out: list[bytes]) -> None:
        """BDAT by itself. A size that cannot be read ends the connection: a body would be taken for commands."""
        if not self._manners.chunking:
            out.append(_NOT_IMPLEMENTED)
            return
        found = _CHUNK_RE.fullmatch(line)
        if found is not None:
            self._begin_chunk(int(found[1]), last=found[2] is not None, out=out)
            return
        size = _CHUNK_SIZE_RE.fullmatch(line)
        if size is None:
            out.append(_BDAT_SYNTAX)
            self.then = Then.CLOSE
            return
        self._await_chunk(int(size[1]), out, last=False, refusal=_BDAT_SYNTAX)

    def _begin_chunk(self, size: int, *, last: bool, out: list[bytes]) -> None:
        """A chunk follows (RFC 3030 section 2)."""
        fate = self._fate
        if self._sender is None:
            self._await_chunk(size, out, last=last, refusal=_NEED_MAIL)
        elif not self._recipients:
            self._await_chunk(size, out, last=last, refusal=_NO_RECIPIENTS)
        elif fate is not None and fate.point is Point.DATA:
            self._reset()
            self._record.counts[fate.counter] += 1
            if fate.then is Then.GO_ON:
                self._await_chunk(size, out, last=last, refusal=fate.reply)
            else:
                out.extend([fate.reply] if fate.reply is not None else [])
                self.then = fate.then
        else:
            self._await_chunk(size, out, last=last, refusal=None)

    def _await_chunk(self, size: int, out: list[bytes], *, last: bool, refusal: bytes | None) -> None:
        """Its bytes come first, then its answer."""
        self._refusal = refusal
        self._body.begin_chunk(size, last=last, wanted=refusal is None)
        if not size:
            self._end_chunk(out)
