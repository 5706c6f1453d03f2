"""Mail transactions in flight on one connection (RFC 5321 3.3, pipelined as RFC 2920 3.1 allows).

Sans-IO: bytes in, bytes and facts out. No socket, no clock, no event loop, and no opinion about what a fact means for
a recipient: that is `outcome`. Hot: thousands of messages a second pass through one object (`submit` and `receive` take
about 5 us a message of 4 kB together, a third of it for the body; `python bench/smtp.py`).

How the modes speak, C: and S: marking a round trip each

    LOCKSTEP     C: MAIL  S: 250  C: RCPT  S: 250  C: DATA  S: 354  C: body .  S: 250
    PIPELINING   C: MAIL RCPT DATA  S: 250 250 354  C: body . MAIL RCPT DATA  S: 250 250 250 354  C: body . MAIL ...

Invariants
- A reply belongs to the oldest command that has none; there is no other way to attribute it.
- The first refusal of a transaction is its cause. What the server answers to the commands already under way after it
  (503, 554) are echoes, and so is the reply to the empty message that ends a transaction whose DATA was allowed though
  its recipient was refused.
- A body leaves only after the 354 that asks for it. So "before" in an event is proof: nothing was handed over that the
  server could have accepted; "after" means that it may have been (RFC 1047).
- A reply that nobody asked for ends the connection: from there on counting attributes nothing.
- Every message submitted is concluded exactly once, by `receive` or by `lost`.
- After `closing` nothing can be submitted.

Reserved: windows of BDAT (RFC 3030, design section 6) will be Mode 3. There a body leaves before any reply, so `lost`
will say "after" at MAIL and RCPT too; `outcome` holds these rows already.
"""

from __future__ import annotations

import re
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from actors.smtp.reply import LINE_MAX, ProtocolError, Reply, ReplyParser, read_line

__all__ = ["Concluded", "Event", "Mode", "Stage", "Transactions", "event_of"]


class Mode(IntEnum):
    """How much is written before a reply is awaited; a mode that misbehaves is stepped down by one."""

    LOCKSTEP = 1
    PIPELINING = 2
    BDAT = 3


class Stage(IntEnum):
    """What a reply answers, in the order of a session."""

    IDLE = 0  # no reply is owed
    CONNECT = 1  # the greeting
    EHLO = 2
    TLS = 3
    AUTH = 4
    MAIL = 5
    RCPT = 6
    DATA = 7
    BODY = 8  # the dot that ends the message
    RSET = 9
    QUIT = 10


class Event(StrEnum):
    """What became of a message. "before" and "after" the body was handed over."""

    OK = "2xx"
    TRANSIENT = "4xx"
    PERMANENT = "5xx"
    BAD_SEQUENCE = "503"
    INTERMEDIATE = "3xx"
    CLOSING = "421"
    LOST_BEFORE = "lost_before"
    LOST_AFTER = "lost_after"
    TIMEOUT_BEFORE = "timeout_before"
    TIMEOUT_AFTER = "timeout_after"
    GARBAGE_BEFORE = "garbage_before"
    GARBAGE_AFTER = "garbage_after"


class Concluded(NamedTuple):
    """The fate of one message.

    number  as given to `submit`
    stage   whose reply (or missing reply) decided it
    reply   that reply; None if none came
    event   what happened
    """

    number: int
    stage: Stage
    reply: Reply | None
    event: Event


_IDLE, _MAIL, _RCPT, _DATA, _BODY, _RSET = Stage.IDLE, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.BODY, Stage.RSET
_OK: Final = Event.OK
_BEFORE = {"lost": Event.LOST_BEFORE, "timeout": Event.TIMEOUT_BEFORE, "garbage": Event.GARBAGE_BEFORE}
_AFTER = {"lost": Event.LOST_AFTER, "timeout": Event.TIMEOUT_AFTER, "garbage": Event.GARBAGE_AFTER}

# What a line begins with, by stage, when all goes well: such a line costs one comparison.
_USUAL: Final = (None, None, None, None, None, b"250 ", b"250 ", b"354 ", b"250 ", None, None)
_NEVER: Final = (None,) * len(_USUAL)  # every line takes the careful way
_DOT_LINE: Final = re.compile(rb"\r\n\.")
_CONTROL: Final = bytes([*range(32), 127])


class _Flight:
    """One message under way. The body is dropped when it has been handed over."""

    __slots__ = ("body", "cause", "number", "rcpt")

    def __init__(self, number: int, rcpt: bytes, body: bytes) -> None:
        self.number = number
        self.rcpt = rcpt
        self.body = body
        self.cause: Concluded | None = None


def event_of(stage: Stage, code: int) -> Event:
    """The event of a reply; OK only if it is what the stage hopes for, or a 2xx."""
    if code == 421:
        return Event.CLOSING
    if code == 503:
        return Event.BAD_SEQUENCE
    if code >= 500:
        return Event.PERMANENT
    if code >= 400:
        return Event.TRANSIENT
    if code >= 300:
        return Event.OK if stage is _DATA and code == 354 else Event.INTERMEDIATE
    return Event.OK


class Transactions:
    """The messages of one connection.

    mode   fixed for the life of the connection
    fault  None, or one line that says how the peer broke the protocol
    """

    def __init__(self, mode: Mode) -> None:
        self.mode: Final = mode
        self.fault: str | None = None
        self._pipelining = mode is Mode.PIPELINING
        self._closing = False
        self._parser = ReplyParser()
        self._rest = b""
        self._usual: tuple[bytes | None, ...] = _USUAL if self._pipelining else _NEVER
        self._head: _Flight | None = None  # whose reply is awaited
        self._next: _Flight | None = None  # its MAIL RCPT DATA are under way behind the head's body
        self._stage = _IDLE  # of the reply awaited: of the head, or RSET
        self._pending = b""  # what may be written once it is certain that nothing else was said
        self._pending_stage = _IDLE
        self._done: list[Concluded] = []

    @property
    def idle(self) -> bool:
        """True if no message is in flight."""
        return self._head is None

    @property
    def closing(self) -> bool:
        """True if nothing can be submitted any more: said or heard goodbye, lost, or the peer broke the protocol."""
        return self._closing

    @property
    def stage(self) -> Stage:
        """What the reply awaited answers, for deadlines; IDLE if none is owed."""
        return self._pending_stage if self._pending else self._stage

    def room(self) -> int:
        """Messages whose MAIL may be written right now: 0 or 1."""
        if self._closing or self._pending:
            return 0
        if self._head is None:
            return 1 if self._pipelining or self._stage is _IDLE else 0
        return 1 if self._pipelining and self._next is None and self._stage is _BODY else 0

    def submit(self, number: int, mail: bytes, rcpt: bytes, body: bytes, params: bytes = b"") -> bytes:
        """Take a message and return what to write now; it begins with MAIL.

        number      the caller's own, handed back in Concluded
        mail, rcpt  addresses, without angle brackets
        body        the whole message with CRLF line ends, the last line's included; not dot-stuffed
        params      of MAIL, e.g. b"SIZE=4096 SMTPUTF8"
        Raises ValueError if an address or `params` would end its line, or the body has no end.
        """
        assert self.room(), "submit without room"
        if body[-2:] != b"\r\n":
            raise ValueError("the message does not end with CRLF")
        if params:
            params = b" " + params
        words = b"".join((mail, rcpt, params))
        if words.translate(None, _CONTROL) != words:
            raise ValueError("an address with a control character")
        flight = _Flight(number, rcpt, body)
        if self._head is not None:
            self._next = flight
        else:
            self._head = flight
            if self._stage is _IDLE:
                self._stage = _MAIL
        if self._pipelining:
            return b"".join((b"MAIL FROM:<", mail, b">", params, b"\r\nRCPT TO:<", rcpt, b">\r\nDATA\r\n"))
        return b"".join((b"MAIL FROM:<", mail, b">", params, b"\r\n"))

    def receive(self, data: bytes) -> tuple[list[Concluded], bytes]:
        """Take bytes from the peer: what was concluded by them, and what to write now.

        After a write of a body there may be `room` for a message: its bytes belong into the same write.
        """
        if self._rest:
            data = self._rest + data
        lines = data.split(b"\n")
        rest = self._rest = lines.pop()
        for line in lines:
            stage = self._stage
            if line[:4] != self._usual[stage]:
                self._careful(line)
            elif stage is _MAIL:
                self._stage = _RCPT
            elif stage is _RCPT:
                self._stage = _DATA
            elif stage is _DATA:
                self._say_body()
            else:
                head = self._head
                assert head is not None
                self._conclude(Concluded(head.number, _BODY, read_line(line), _OK))
        if len(rest) > LINE_MAX:
            self._break("a reply line without an end")
        done = self._done
        if done:
            self._done = []
        if not self._pending or rest or self._closing:
            return done, b""  # with a rest, something nobody asked for is arriving: let it show itself
        out, self._pending = self._pending, b""
        self._stage = self._pending_stage
        return done, out

    def lost(self, why: str = "lost") -> list[Concluded]:
        """Conclude what is in flight: the connection is gone ("lost") or a deadline has passed ("timeout")."""
        self._end(why)
        done, self._done = self._done, []
        return done

    def quit(self) -> bytes:
        """QUIT, or nothing if there is nobody left to say it to. No message may be in flight."""
        assert self._head is None, "quit with messages in flight"
        if self._closing:
            return b""
        self._closing = True
        self._pending = b""
        self._stage = Stage.QUIT
        return b"QUIT\r\n"

    def _careful(self, line: bytes) -> None:
        """A line that is not what the stage hopes for, or not known to be."""
        if self._stage is Stage.QUIT or (self._closing and self._head is None):
            return  # 221, or a server that goes on talking while it closes
        try:
            reply = self._parser.line(line)
        except ProtocolError as error:
            self._break(str(error))
            return
        if reply is None:
            self._usual = _NEVER  # until this reply is complete
            return
        if self._stage is _IDLE:
            self._unasked(reply)
        elif self._stage is _RSET:
            self._after_reset(reply)
        else:
            self._answer(reply)
        head = self._head
        self._usual = _USUAL if self._pipelining and (head is None or head.cause is None) else _NEVER

    def _answer(self, reply: Reply) -> None:
        """A reply to a command of the head."""
        head, stage = self._head, self._stage
        assert head is not None
        event = event_of(stage, reply.code)
        if event is Event.CLOSING:  # RFC 5321 3.8: in answer to anything; the server closes
            self._closing = True
            self._conclude(head.cause or Concluded(head.number, stage, reply, event))
            return
        if event is Event.INTERMEDIATE or (stage is _DATA and reply.code < 300):
            # Whether the server now takes commands or text is anybody's guess.
            concluded = head.cause or Concluded(head.number, stage, reply, event)
            self._conclude(concluded)
            self._break(f"unexpected reply to {stage.name}: {reply}")
            return
        if event is not _OK and head.cause is None:
            head.cause = Concluded(head.number, stage, reply, event)
        if stage is _BODY:
            self._conclude(head.cause or Concluded(head.number, stage, reply, event))
        elif stage is _DATA:
            if event is _OK:
                self._say_body()
            else:
                self._abandon()
        elif self._pipelining:
            self._stage = Stage(stage + 1)
        elif head.cause is not None:
            self._abandon()
        elif stage is _MAIL:
            self._say(b"RCPT TO:<%b>\r\n" % head.rcpt, _RCPT)
        else:
            self._say(b"DATA\r\n", _DATA)

    def _say(self, command: bytes, stage: Stage) -> None:
        """Write this once everything received has been looked at; its reply answers `stage`."""
        self._pending = command
        self._pending_stage = stage
        self._stage = _IDLE

    def _say_body(self) -> None:
        """The server allowed the message: hand it over, or an empty one if its recipient was refused."""
        head = self._head
        assert head is not None
        if head.cause is not None:
            self._say(b".\r\n", _BODY)
            return
        body = head.body  # RFC 5321 4.5.2 doubles a dot that begins a line
        if (
            _DOT_LINE.search(body) is not None
        ):  # rare; twice as quick as letting replace look (1.2 against 2.6 us, 4 kB)
            body = body.replace(b"\r\n.", b"\r\n..")
        head.body = b""
        self._say(b"".join((b"." if body[0] == 46 else b"", body, b".\r\n")), _BODY)

    def _abandon(self) -> None:
        """Conclude a refused transaction that never came to its message.

        The server may keep it open (Exim does, and then takes the next message under this one's sender), so it is
        reset unless there is none: MAIL itself was refused.
        """
        head = self._head
        assert head is not None
        assert head.cause is not None
        opened = head.cause.stage is not _MAIL
        self._conclude(head.cause)
        if opened:
            self._say(b"RSET\r\n", _RSET)

    def _conclude(self, concluded: Concluded) -> None:
        """The head is done; the next one's first reply is awaited, if there is a next one."""
        self._done.append(concluded)
        self._head, self._next = self._next, None
        self._stage = _IDLE if self._head is None else _MAIL

    def _after_reset(self, reply: Reply) -> None:
        if reply.code >= 300:
            self._closing = True
            if reply.code != 421:
                self._break(f"unexpected reply to RSET: {reply}")
                return
            self._end("lost")
            return
        self._stage = _IDLE if self._head is None else _MAIL

    def _unasked(self, reply: Reply) -> None:
        """A reply while none is owed. A goodbye is understood, and so is a refusal ahead of the message."""
        head = self._head
        if reply.code == 421:
            self._closing = True
        elif head is None or self._pending_stage is not _BODY or reply.code < 400:
            self._break(f"a reply nobody asked for: {reply}")
            return
        self._pending = b""
        if head is not None:  # the body has not left, whatever the server says
            event = event_of(_BODY, reply.code)
            self._conclude(head.cause or Concluded(head.number, self._pending_stage, reply, event))
        if not self._closing:
            self._break(f"a reply ahead of the message: {reply}")

    def _break(self, fault: str) -> None:
        """The peer broke the protocol: conclude everything, believe nothing more."""
        self.fault = self.fault or fault
        self._end("garbage")

    def _end(self, why: str) -> None:
        """Conclude what is in flight, each by its own cause if it has one."""
        self._closing = True
        handed_over = self._stage is _BODY
        stage = self.stage
        if stage is _RSET:
            stage = _MAIL  # the reset was of an earlier transaction
        elif self._pending and stage is _BODY:
            stage = _DATA  # its 354 came, its body has not left
        self._pending = b""
        while self._head is not None:
            head = self._head
            event = _AFTER[why] if handed_over else _BEFORE[why]
            self._conclude(head.cause or Concluded(head.number, stage, None, event))
            stage, handed_over = _MAIL, False
        self._stage = _IDLE
