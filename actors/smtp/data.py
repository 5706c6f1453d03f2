"""Messages on one connection by DATA: in lock-step, or pipelined as RFC 2920 3.1 allows.

C: and S: marking a round trip each

    LOCKSTEP     C: MAIL  S: 250  C: RCPT  S: 250  C: DATA  S: 354  C: body .  S: 250
    PIPELINING   C: MAIL RCPT DATA  S: 250 250 354  C: body . MAIL RCPT DATA  S: 250 250 250 354  C: body . MAIL ...

Hot: thousands of messages a second pass through one object. See `exchange` for what holds in every mode; here also

- A body leaves only after the 354 that asks for it. So "before" in an event is proof: nothing was handed over that the
  server could have accepted; "after" means that it may have been (RFC 1047).
- A refused recipient whose DATA is allowed all the same gets an empty message (RFC 2920 3.1); the reply to that is an
  echo, too.
"""

from __future__ import annotations

import re
from typing import Final

from actors.smtp.dots import as_data
from actors.smtp.events import Concluded, Event, Mode, Stage, event_of
from actors.smtp.exchange import AFTER, BEFORE, CONTROL, Exchange, refuse
from actors.smtp.reply import LINE_MAX, Reply, read_ok

__all__ = ["DataExchange"]

_IDLE, _MAIL, _RCPT, _DATA, _BODY, _RSET = Stage.IDLE, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.BODY, Stage.RSET
_OK: Final = Event.OK
_new: Final = tuple.__new__  # of a named tuple: half as dear as its own constructor

_LINE_ENDS: Final = 6  # bytes of the control characters in MAIL RCPT DATA: three CRLF

# What a line begins with, by stage, when all goes well: such a line costs one comparison.
_USUAL: Final = (None, None, None, None, None, b"250 ", b"250 ", b"354 ", b"250 ", None, None)
_NEVER: Final = (None,) * len(_USUAL)  # every line takes the careful way
# A read that holds the end of one message and leave for the next, and no more, costs one match (0.2 us).
_GROUP: Final = re.compile(rb"(250 [^\n]*)\n250 [^\n]*\n250 [^\n]*\n354 [^\n]*\n")


_Flight = tuple[int, bytes, bytes]  # number, rcpt, body; the body is dropped when it has been handed over


class DataExchange(Exchange):
    """The messages of one connection, two under way at most."""

    def __init__(self, mode: Mode) -> None:
        super().__init__(mode)
        self._pipelining = mode is Mode.PIPELINING
        self._usual: tuple[bytes | None, ...] = _USUAL if self._pipelining else _NEVER
        self._head: _Flight | None = None  # whose reply is awaited
        self._cause: Concluded | None = None  # its first refusal
        self._next: _Flight | None = None  # its MAIL RCPT DATA are under way behind the head's body
        self._stage = _IDLE  # of the reply awaited: of the head, or RSET
        self._pending = b""  # what may be written once it is certain that nothing else was said
        self._pending_stage = _IDLE

    @property
    def idle(self) -> bool:
        """True if no message is in flight."""
        return self._head is None

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
        """Take a message and return what to write now; it begins with MAIL."""
        if params:
            params = b" " + params
        group = b"MAIL FROM:<%b>%b\r\nRCPT TO:<%b>\r\nDATA\r\n" % (mail, params, rcpt)
        if len(group.translate(None, CONTROL)) != len(group) - _LINE_ENDS or body[-2:] != b"\r\n":
            raise refuse(body)
        flight = (number, rcpt, body)
        if self._head is not None:
            assert self._next is None, "submit without room"
            self._next = flight
        else:
            assert not self._closing, "submit without room"
            self._head = flight
            if self._stage is _IDLE:
                self._stage = _MAIL
        return group if self._pipelining else group[: group.index(b"\n") + 1]

    def receive(self, data: bytes) -> tuple[list[Concluded], bytes]:
        """Take bytes from the peer: what was concluded by them, and what to write now.

        After a write of a body there may be `room` for a message: its bytes belong into the same write.
        """
        if self._rest:
            data = self._rest + data
        following = self._next
        if following is not None and self._stage is _BODY and self._usual is _USUAL and len(data) <= LINE_MAX:
            group = _GROUP.fullmatch(data)
            if group is not None:
                head = self._head
                assert head is not None
                number, rcpt, body = following
                self._head, self._next, self._rest = (number, rcpt, b""), None, b""
                return [_new(Concluded, (head[0], _BODY, read_ok(group[1]), _OK))], as_data(body)
        return self._by_line(data)

    def _by_line(self, data: bytes) -> tuple[list[Concluded], bytes]:
        """The same, for a read that is not one whole happy group."""
        lines = data.split(b"\n")
        rest = self._rest = lines.pop()
        for line in lines:
            stage = self._stage
            if line[:4] != self._usual[stage] or len(line) > LINE_MAX:
                self._careful(line)
                self._usual = _USUAL if self._pipelining and not self._parser.open and self._cause is None else _NEVER
            elif stage is _MAIL:
                self._stage = _RCPT
            elif stage is _RCPT:
                self._stage = _DATA
            elif stage is _DATA:
                self._say_body()
            else:
                head = self._head
                assert head is not None
                self._conclude(Concluded(head[0], _BODY, read_ok(line), _OK))
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

    def reset(self) -> bytes:
        """RSET, ahead of the first message: an earlier exchange on this connection may have left one open."""
        assert self._head is None
        self._stage = _RSET
        return b"RSET\r\n"

    def quit(self) -> bytes:
        """QUIT, or nothing if there is nobody left to say it to. No message may be in flight."""
        self._pending = b""
        farewell = super().quit()
        if farewell:
            self._stage = Stage.QUIT
        return farewell

    def _heard(self, reply: Reply) -> None:
        """A reply: to a command, to a reset, or to nothing."""
        if self._stage is _IDLE:
            self._unasked(reply)
        elif self._stage is _RSET:
            self._after_reset(reply)
        else:
            self._answer(reply)

    def _answer(self, reply: Reply) -> None:
        """A reply to a command of the head."""
        head, stage = self._head, self._stage
        assert head is not None
        event = event_of(stage, reply.code)
        if event is Event.CLOSING:  # RFC 5321 3.8: in answer to anything; the server closes
            self._closing = True
            self._conclude(self._cause or Concluded(head[0], stage, reply, event))
            return
        if event is Event.INTERMEDIATE or (stage is _DATA and reply.code < 300):
            # Whether the server now takes commands or text is anybody's guess.
            concluded = self._cause or Concluded(head[0], stage, reply, event)
            self._conclude(concluded)
            self._break(f"unexpected reply to {stage.name}: {reply}")
            return
        if event is not _OK and self._cause is None:
            self._cause = Concluded(head[0], stage, reply, event)
        if stage is _BODY:
            self._conclude(self._cause or Concluded(head[0], stage, reply, event))
        elif stage is _DATA:
            if event is _OK:
                self._say_body()
            else:
                self._abandon()
        elif self._pipelining:
            self._stage = Stage(stage + 1)
        elif self._cause is not None:
            self._abandon()
        elif stage is _MAIL:
            self._say(b"RCPT TO:<%b>\r\n" % head[1], _RCPT)
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
        if self._cause is not None:
            self._say(b".\r\n", _BODY)
            return
        number, rcpt, body = head
        self._head = (number, rcpt, b"")
        self._say(as_data(body), _BODY)

    def _abandon(self) -> None:
        """Conclude a refused transaction that never came to its message.

        The server may keep it open (Exim does, and then takes the next message under this one's sender), so it is
        reset unless there is none: MAIL itself was refused.
        """
        assert self._cause is not None
        opened = self._cause.stage is not _MAIL
        self._conclude(self._cause)
        if opened:
            self._say(b"RSET\r\n", _RSET)

    def _conclude(self, concluded: Concluded) -> None:
        """The head is done; the next one's first reply is awaited, if there is a next one."""
        self._done.append(concluded)
        self._head, self._next, self._cause = self._next, None, None
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
            self._conclude(self._cause or Concluded(head[0], self._pending_stage, reply, event))
        if not self._closing:
            self._break(f"a reply ahead of the message: {reply}")

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
            event = AFTER[why] if handed_over else BEFORE[why]
            self._conclude(self._cause or Concluded(head[0], stage, None, event))
            stage, handed_over = _MAIL, False
        self._stage = _IDLE
