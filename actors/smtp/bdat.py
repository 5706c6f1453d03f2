"""Windows of messages on one connection: CHUNKING and PIPELINING together (RFC 3030 4.2), no round trip a message.

    C: RSET MAIL RCPT BDAT body  RSET MAIL RCPT BDAT body ...   up to `window` messages
    S: 250 250 250 250           250 250 250 250 ...

Hot: thousands of messages a second pass through one object. See `exchange` for what holds in every mode; here also

- Every body leaves before any reply to its message has come. So without a refusal of its own nothing proves that a
  message was not accepted, and the end of the connection makes it uncertain ("after").
- The RSET makes each message stand alone. Exim keeps a transaction open whose only recipient it refused, and would
  take the next message under that one's sender.
- A message is accepted if the server took its recipient and its body, whatever it said to RSET and MAIL: a 503 to
  MAIL does not mean "not sent".
- After 421 the server closes, so what stands behind it was not processed (it answers in order): "before". If it goes
  on answering all the same, its answers count, and that proof is void.
- A verdict that ends the connection (421, a 503 out of the blue) is told when all that was handed over is answered or
  lost: what stands behind it must not become uncertain because we hung up.
- A server that does not know BDAT reads the body as commands. Its replies to them cannot be told from others.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from actors.smtp.events import Concluded, Event, Mode, Stage, event_of
from actors.smtp.exchange import AFTER, BEFORE, CONTROL, Exchange, refuse
from actors.smtp.reply import LINE_MAX, Reply, read_ok

__all__ = ["WINDOW_BYTES", "BdatExchange"]

WINDOW_BYTES: Final = 256_000  # bodies in flight; more would only fill buffers, and all of it is lost with the line

_OK: Final = Event.OK
_new: Final = tuple.__new__  # of a named tuple: half as dear as its own constructor
_MAIL, _RCPT, _BODY, _RSET = Stage.MAIL, Stage.RCPT, Stage.BODY, Stage.RSET
_OWED: Final = (_RSET, _MAIL, _RCPT, _BODY)  # the replies to one message
_LAST: Final = len(_OWED) - 1
_LINE_ENDS: Final = 8  # bytes of the control characters in RSET MAIL RCPT BDAT: four CRLF
_NO_SUCH_COMMAND: Final = frozenset({500, 501, 502, 504})  # in answer to BDAT: it was not understood


class BdatExchange(Exchange):
    """The messages of one connection, in windows."""

    def __init__(self) -> None:
        super().__init__(Mode.BDAT)
        self._flights: deque[tuple[int, int]] = deque()  # number, bytes; oldest first
        self._bytes = 0  # of them all
        self._size = 1  # of the message submitted last
        self._place = 0  # in _OWED: which reply to the head is awaited
        self._cause: Concluded | None = None  # the head's first refusal
        self._refused = False  # the head cannot be accepted any more
        self._plain = True  # nothing unusual is under way: a line `250 ...` is a reply, and a good one
        self._finishing = False  # nothing more is submitted; closing when all that is owed has come
        self._goodbye = False  # the last reply was 421

    @property
    def idle(self) -> bool:
        """True if no message is in flight."""
        return not self._flights

    @property
    def stage(self) -> Stage:
        """What the reply awaited answers, for deadlines; IDLE if none is owed."""
        if self._flights:
            return _OWED[self._place]
        return Stage.QUIT if self._said_quit else Stage.IDLE

    def room(self) -> int:
        """Messages that may be submitted right now: what the window and WINDOW_BYTES leave, one at least if idle."""
        if self._closing or self._finishing:
            return 0
        left = self.window - len(self._flights)
        if self._bytes + left * self._size > WINDOW_BYTES:
            left = (WINDOW_BYTES - self._bytes) // self._size
        if left > 0:
            return left
        return 0 if self._flights else 1

    def submit(self, number: int, mail: bytes, rcpt: bytes, body: bytes, params: bytes = b"") -> bytes:
        """Take a message and return all of it."""
        assert len(self._flights) < self.window, "submit without room"
        if params:
            params = b" " + params
        size = len(body)
        group = b"RSET\r\nMAIL FROM:<%b>%b\r\nRCPT TO:<%b>\r\nBDAT %d LAST\r\n" % (mail, params, rcpt, size)
        if len(group.translate(None, CONTROL)) != len(group) - _LINE_ENDS or body[-2:] != b"\r\n":
            raise refuse(body)
        self._size = size
        self._bytes += size
        self._flights.append((number, size))
        return group + body

    def receive(self, data: bytes) -> tuple[list[Concluded], bytes]:
        """Take bytes from the peer: what was concluded by them; there is never anything to write but new messages."""
        if self._rest:
            data = self._rest + data
        lines = data.split(b"\n")
        rest = self._rest = lines.pop()
        count = len(lines)
        if (
            self._plain
            and data[:4] == b"250 "
            and data.count(b"\n250 ", 0, len(data) - len(rest)) == count - 1
            and count <= 4 * len(self._flights) - self._place
            and len(data) <= LINE_MAX
        ):
            self._all_well(lines[_LAST - self._place :: 4])
            self._place = (self._place + count) & 3
        else:
            for line in lines:
                self._take(line)
        if len(rest) > LINE_MAX:
            self._break("a reply line without an end")
        if self._finishing:
            if self._flights:
                return [], b""
            self._closing = True
        done = self._done
        if done:
            self._done = []
        return done, b""

    def _all_well(self, finals: list[bytes]) -> None:
        """Conclude one message a line: its last reply, known to be `250 ...`, and so were the others."""
        flights, done = self._flights, self._done
        for line in finals:
            number, size = flights.popleft()
            self._bytes -= size
            done.append(_new(Concluded, (number, _BODY, read_ok(line), _OK)))

    def _take(self, line: bytes) -> None:
        """One line of a read that is not plain success from end to end."""
        if self._plain and line[:4] == b"250 " and self._flights and len(line) <= LINE_MAX:
            if self._place == _LAST:
                self._all_well([line])
            self._place = (self._place + 1) & 3
            return
        self._careful(line)
        self._plain = self._cause is None and not (self._parser.open or self._finishing or self._closing)

    def _heard(self, reply: Reply) -> None:
        """A reply to the head."""
        if not self._flights:
            self._unasked(reply)
            return
        stage = _OWED[self._place]
        event = event_of(stage, reply.code)
        self._goodbye = event is Event.CLOSING
        if event is Event.INTERMEDIATE:  # whether the server takes commands or text now is anybody's guess
            self.fault = f"unexpected reply to {stage.name}: {reply}"
            self._end("garbage", reply)
            return
        if event is Event.CLOSING:
            self._finishing = True
        elif event is not _OK and (stage is _RSET or (stage is _BODY and reply.code in _NO_SUCH_COMMAND)):
            event = Event.BAD_SEQUENCE
        if event is not _OK and self._cause is None:
            self._cause = Concluded(self._flights[0][0], _MAIL if stage is _RSET else stage, reply, event)
            self._finishing |= event is Event.BAD_SEQUENCE
        if stage is _BODY:
            self._answered(reply, event)
            return
        if stage is _RCPT:
            self._refused = event is not _OK
        elif event is not _OK:
            self._refused = event is not Event.BAD_SEQUENCE
        self._place += 1

    def _answered(self, reply: Reply, event: Event) -> None:
        """The last reply to the head: conclude it."""
        number = self._flights[0][0]
        accepted = event is _OK and not self._refused
        verdict = Concluded(number, _BODY, reply, _OK) if accepted else self._cause
        assert verdict is not None
        self._conclude(verdict)
        if reply.code in _NO_SUCH_COMMAND:
            self._break(f"CHUNKING is announced, but BDAT is not understood: {reply}")

    def _conclude(self, verdict: Concluded) -> None:
        """The head is done; the next one's first reply is awaited, if there is a next one."""
        self._done.append(verdict)
        self._bytes -= self._flights.popleft()[1]
        self._place = 0
        self._cause = None
        self._refused = False

    def _unasked(self, reply: Reply) -> None:
        """A reply while none is owed. A goodbye is understood."""
        if reply.code == 421:
            self._closing = True
        else:
            self._break(f"a reply nobody asked for: {reply}")

    def _end(self, why: str, reply: Reply | None = None) -> None:
        """Conclude what is in flight; `reply` is what made an end of it, if one did."""
        unprocessed = self._goodbye and why != "garbage"
        event = BEFORE[why] if unprocessed else AFTER[why]
        while self._flights:
            number = self._flights[0][0]
            stage = _MAIL if _OWED[self._place] is _RSET else _OWED[self._place]
            known = self._cause if self._refused or unprocessed else None
            self._conclude(known or Concluded(number, stage, reply, event))
            reply = None
        self._closing = True
        self._plain = False
