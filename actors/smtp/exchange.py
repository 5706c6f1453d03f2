"""What the messages of one connection have in common, however they are carried (`data`, `bdat`).

Sans-IO: bytes in, bytes and facts out. No socket, no clock, no event loop, and no opinion about what a fact means for
a recipient: that is `outcome`.

Invariants
- A reply belongs to the oldest command that has none; there is no other way to attribute it.
- The first refusal of a transaction is its cause; what the server answers to the commands already under way after it
  (503, 554) are echoes.
- A reply that nobody asked for ends the connection: from there on counting attributes nothing.
- Every message submitted is concluded exactly once, in the order of submission, by `receive` or by `lost`.
- After `closing` nothing can be submitted.
- What is fed in pieces, cut at any byte, concludes the same as the whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from actors.smtp.events import Concluded, Event, Mode, Stage
from actors.smtp.reply import ProtocolError, Reply, ReplyParser

__all__ = ["AFTER", "BEFORE", "CONTROL", "Exchange", "refuse"]

BEFORE: Final = {"lost": Event.LOST_BEFORE, "timeout": Event.TIMEOUT_BEFORE, "garbage": Event.GARBAGE_BEFORE}
AFTER: Final = {"lost": Event.LOST_AFTER, "timeout": Event.TIMEOUT_AFTER, "garbage": Event.GARBAGE_AFTER}

CONTROL: Final = bytes([*range(32), 127])  # what no address and no parameter may hold: it could end the command


def refuse(body: bytes) -> ValueError:
    """Why a message was not taken: its body has no end, or a word of its envelope would end a line."""
    if body[-2:] != b"\r\n":
        return ValueError("the message does not end with CRLF")
    return ValueError("an address with a control character")


class Exchange(ABC):
    """The messages of one connection.

    mode    fixed for the life of the connection
    window  BDAT: most messages in flight, to be set by whoever adapts it; without a meaning in the other modes
    fault   None, or one line that says how the peer broke the protocol
    """

    def __init__(self, mode: Mode) -> None:
        self.mode: Final = mode
        self.window = 1
        self.fault: str | None = None
        self._closing = False
        self._said_quit = False
        self._parser = ReplyParser()
        self._rest = b""
        self._done: list[Concluded] = []

    @property
    def closing(self) -> bool:
        """True if nothing can be submitted any more: said or heard goodbye, lost, or the peer broke the protocol."""
        return self._closing

    @property
    @abstractmethod
    def idle(self) -> bool:
        """True if no message is in flight."""

    @property
    @abstractmethod
    def stage(self) -> Stage:
        """What the reply awaited answers, for deadlines; IDLE if none is owed."""

    @abstractmethod
    def room(self) -> int:
        """Messages that may be submitted right now, one after the other."""

    @abstractmethod
    def submit(self, number: int, mail: bytes, rcpt: bytes, body: bytes, params: bytes = b"") -> bytes:
        """Take a message and return what to write now; only while there is `room`.

        number      the caller's own, handed back in Concluded
        mail, rcpt  addresses, without angle brackets
        body        the whole message with CRLF line ends, the last line's included; not dot-stuffed
        params      of MAIL, e.g. b"SIZE=4096 SMTPUTF8"
        Raises ValueError if an address or `params` would end its line, or the body has no end.
        """

    @abstractmethod
    def receive(self, data: bytes) -> tuple[list[Concluded], bytes]:
        """Take bytes from the peer: what was concluded by them, and what to write now.

        Afterwards there may be `room` for messages: their bytes belong into the same write.
        """

    def lost(self, why: str = "lost") -> list[Concluded]:
        """Conclude what is in flight: the connection is gone ("lost") or a deadline has passed ("timeout")."""
        self._end(why)
        done, self._done = self._done, []
        return done

    def quit(self) -> bytes:
        """QUIT, or nothing if there is nobody left to say it to. No message may be in flight."""
        assert self.idle, "quit with messages in flight"
        if self._closing:
            return b""
        self._closing = self._said_quit = True
        return b"QUIT\r\n"

    def _careful(self, line: bytes) -> None:
        """A line that is not what was hoped for, or not known to be."""
        if self._said_quit or (self._closing and self.idle):
            return  # 221, or a server that goes on talking while it closes
        try:
            reply = self._parser.line(line)
        except ProtocolError as error:
            self._break(str(error))
            return
        if reply is not None:
            self._heard(reply)

    def _break(self, fault: str) -> None:
        """The peer broke the protocol: conclude everything, believe nothing more."""
        self.fault = self.fault or fault
        self._end("garbage")

    @abstractmethod
    def _heard(self, reply: Reply) -> None:
        """Take one whole reply."""

    @abstractmethod
    def _end(self, why: str) -> None:
        """Conclude what is in flight, each by its own cause if it has one; from now on the exchange is closing."""
