"""Which recipients the rehearsal server refuses, defers or drops, and at which point of the conversation.

Pure apart from one memory: who was deferred before. It reads no clock and no socket.

Invariants
- The same seed and the same address always get the same fate at the first attempt, in any process.
- A recipient deferred by chance, or by a magic address ending in `-once`, is accepted from the second attempt on.
- An address that is not ordinary (`ordinary` says so) costs time; an ordinary one costs one failed match.

Magic recipients: the local part says what happens, a `+tag` keeps several of them apart (`defer+7@example.com`):

    defer@         450 to RCPT, every time          bounce@       550 to RCPT
    drop-before@   closes instead of answering DATA drop-after@   reads the body and closes without a reply
    421@           421 to RCPT, then closes         NAME-once@    the same at the first attempt only
    rcpt-NNN@  data-NNN@  body-NNN@                  that reply at that stage, e.g. `body-554-5.7.1@`
"""

from __future__ import annotations

import re
from enum import Enum
from hashlib import blake2b
from typing import NamedTuple

__all__ = ["Fate", "Point", "Policy"]


class Point(Enum):
    """The command whose reply shows the fate."""

    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"


class Fate(NamedTuple):
    """What happens to a recipient who is not simply accepted.

    point   the command at which it happens
    reply   the line to answer, CRLF included; None = no reply
    close   close the connection then
    counter name in the sink's counts
    """

    point: Point
    reply: bytes | None
    close: bool
    counter: str


_DEFER = Fate(Point.RCPT, b"450 4.2.1 Mailbox busy, try again later\r\n", False, "deferred")
_BOUNCE = Fate(Point.RCPT, b"550 5.1.1 User unknown\r\n", False, "bounced")
_MAGIC = {
    b"defer": _DEFER,
    b"bounce": _BOUNCE,
    b"drop-before": Fate(Point.DATA, None, True, "dropped_before"),
    b"drop-after": Fate(Point.BODY, None, True, "dropped_after"),
    b"421": Fate(Point.RCPT, b"421 4.3.2 Closing connection\r\n", True, "closed_421"),
}
_MAGIC_RE = re.compile(
    rb"(?:(defer|bounce|drop-before|drop-after|421)|(rcpt|data|body)-([2345]\d\d)(?:-([245]\.\d{1,3}\.\d{1,3}))?)"
    rb"(-once)?(?:\+[^@]*)?@",
    re.IGNORECASE,
)


def _scripted(point: bytes, code: bytes, enhanced: bytes | None) -> Fate:
    """The fate spelled out in an address like `body-554-5.7.1@`."""
    status = enhanced if enhanced is not None else b"%c.0.0" % code[0]
    counter = "deferred" if code[:1] == b"4" else "bounced"
    line = b"%b %b As the recipient's address asks\r\n" % (code, status)
    return Fate(Point(point.decode().lower()), line, code == b"421", counter)


class Policy:
    """Fates of recipients for one run of the sink.

    defer, bounce   shares of recipients, 0..1; together at most 1
    seed            changes who they are
    """

    def __init__(self, defer: float = 0.0, bounce: float = 0.0, seed: int = 0) -> None:
        self._bounce_below = int(bounce * 2**64)
        self._defer_below = int((bounce + defer) * 2**64)
        self._key = seed.to_bytes(8, "little", signed=True)
        self._seen: set[bytes] = set()

    def ordinary(self, recipient: bytes) -> bool:
        """True if this recipient is accepted whatever happened before; changes nothing."""
        return not self._defer_below and _MAGIC_RE.match(recipient) is None

    def fate(self, recipient: bytes) -> Fate | None:
        """What happens to this attempt; None = accepted. Remembers the attempt where a later one differs."""
        match = _MAGIC_RE.match(recipient)
        if match is not None:
            return self._magic(recipient, match)
        if not self._defer_below:
            return None
        lot = int.from_bytes(blake2b(recipient.lower(), digest_size=8, key=self._key).digest(), "little")
        if lot < self._bounce_below:
            return _BOUNCE
        if lot < self._defer_below and self._first(recipient):
            return _DEFER
        return None

    def _magic(self, recipient: bytes, match: re.Match[bytes]) -> Fate | None:
        name, point, code, enhanced, once = match.groups()
        if once and not self._first(recipient):
            return None
        return _MAGIC[name.lower()] if name else _scripted(point, code, enhanced)

    def _first(self, recipient: bytes) -> bool:
        """True at the first call for this address."""
        address = recipient.lower()
        if address in self._seen:
            return False
        self._seen.add(address)
        return True
