"""Recipients that ask the rehearsal server for one fault each: a table, which the code reads and the docs are made of.

The local part says what happens, a `+tag` keeps several of them apart (`defer+7@example.com`), and `-once` after the
name means the first attempt only (`drop-after-once@example.com`). Pure: values only.

Invariants
- A name is found by one match at the beginning of an address; an ordinary address costs a look-up and nothing else.
- A fault at a point happens there in both ways of handing over a body, DATA and BDAT (RFC 3030).
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

__all__ = [
    "GREYLISTED", "GREYLIST_NAME", "MAGIC", "MAGIC_BEGINNINGS", "MAGIC_RE", "SCRIPTED", "Fate", "Magic", "Point",
    "Then", "scripted",
]  # fmt: skip


class Point(Enum):
    """Where in a transaction a fate shows."""

    RCPT = "rcpt"
    DATA = "data"  # instead of an answer to DATA; with BDAT, to the chunk, which is read and forgotten
    DURING = "during"  # when the first bytes of the body are there
    BODY = "body"  # when the whole body is there


class Then(Enum):
    """What the server does with the connection after its replies."""

    GO_ON = "go on"
    CLOSE = "close"  # politely: no more is said, and what still comes is read and forgotten
    DROP = "drop"  # as a machine that fails, whatever is still to be read
    HANG = "hang"  # stays open, and never says anything again
    TLS = "tls"  # both sides encrypt from here on (RFC 3207)


class Fate(NamedTuple):
    """What happens to a recipient who is not simply accepted.

    point    where it happens
    reply    the line to answer, CRLF included; None = no reply
    then     what becomes of the connection
    counter  name in the sink's counts
    """

    point: Point
    reply: bytes | None
    then: Then
    counter: str


class Magic(NamedTuple):
    """A magic name, its fate, and what happens in words."""

    name: str
    fate: Fate
    text: str


_RCPT, _BODY, _GO_ON, _CLOSE, _DROP = Point.RCPT, Point.BODY, Then.GO_ON, Then.CLOSE, Then.DROP

GREYLIST_NAME = "greylist"
GREYLISTED = Fate(_RCPT, b"450 4.2.0 Greylisted, please try again later\r\n", _GO_ON, "greylisted")

MAGIC = (
    Magic(
        "defer",
        Fate(_RCPT, b"450 4.2.1 Mailbox busy, try again later\r\n", _GO_ON, "deferred"),
        "450 to RCPT, every time",
    ),
    Magic("bounce", Fate(_RCPT, b"550 5.1.1 User unknown\r\n", _GO_ON, "bounced"), "550 to RCPT"),
    Magic("full", Fate(_RCPT, b"452 4.2.2 Mailbox full\r\n", _GO_ON, "full"), "452 4.2.2 to RCPT: the mailbox is full"),
    Magic(
        GREYLIST_NAME,
        GREYLISTED,
        "450 4.2.0 to RCPT until the seconds of `--greylist` (without it 10) have passed since the first attempt",
    ),
    Magic(
        "throttle",
        Fate(_RCPT, b"421 4.7.0 Too many messages, slow down\r\n", _CLOSE, "throttled"),
        "421 4.7.0 to RCPT, and the connection closes: too fast",
    ),
    Magic(
        "421",
        Fate(_RCPT, b"421 4.3.2 Closing connection\r\n", _CLOSE, "closed_421"),
        "421 4.3.2 to RCPT, and the connection closes: the server goes down",
    ),
    Magic(
        "blocked",
        Fate(
            _RCPT,
            b"554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org\r\n",
            _GO_ON,
            "blocked",
        ),
        "554 5.7.1 to RCPT: the sender is on a block list",
    ),
    Magic(
        "quota",
        Fate(_RCPT, b"454 4.7.0 Throttling failure: Daily message quota exceeded\r\n", _GO_ON, "throttled"),
        "454 to RCPT: the sender's quota is used up",
    ),
    Magic(
        "spam",
        Fate(_BODY, b"554 5.7.1 Message rejected as spam\r\n", _GO_ON, "blocked"),
        "554 5.7.1 to the body: the message is not wanted",
    ),
    Magic(
        "too-big",
        Fate(_BODY, b"552 5.3.4 Message size exceeds fixed limit\r\n", _GO_ON, "refused"),
        "552 5.3.4 to the body",
    ),
    Magic(
        "drop-before",
        Fate(Point.DATA, None, _DROP, "dropped_before"),
        "the connection closes instead of an answer to DATA or BDAT: nothing was accepted",
    ),
    Magic(
        "drop-during",
        Fate(Point.DURING, None, _DROP, "dropped_during"),
        "the connection closes when the first bytes of the body are there: nothing was accepted",
    ),
    Magic(
        "drop-after",
        Fate(_BODY, None, _DROP, "dropped_after"),
        "the body is read, and the connection closes without an answer: the sender cannot know",
    ),
    Magic("hang", Fate(_RCPT, None, Then.HANG, "hung"), "no answer to RCPT nor to anything after it"),
    Magic(
        "hang-after",
        Fate(_BODY, None, Then.HANG, "hung"),
        "the body is read, and there is no answer to it nor to anything after it",
    ),
    Magic("garbage", Fate(_RCPT, b"what?\r\n", _GO_ON, "garbage"), "a line that is no SMTP reply, to RCPT"),
)

SCRIPTED = (
    "`rcpt-NNN@`, `data-NNN@`, `body-NNN@`",
    "that code at that stage, with an enhanced status if you like: `body-554-5.7.1@`; 421 closes the connection",
)

MAGIC_RE = re.compile(
    rb"(?:(%b)|(rcpt|data|body)-([2345]\d\d)(?:-([245]\.\d{1,3}\.\d{1,3}))?)(-once)?(?:\+[^@]*)?@"
    % b"|".join(re.escape(magic.name.encode()) for magic in sorted(MAGIC, key=lambda magic: -len(magic.name))),
    re.IGNORECASE,
)
"""Groups: name; or point, code, enhanced status; and `-once`."""

MAGIC_BEGINNINGS = frozenset(
    name.encode()[:3] for name in (*(magic.name for magic in MAGIC), *(point.value for point in Point))
)
"""The first three bytes, lower case, of every address that can match: a look-up is a seventh of a match."""


def scripted(point: bytes, code: bytes, enhanced: bytes | None) -> Fate:
    """The fate spelled out in an address like `body-554-5.7.1@`."""
    status = enhanced if enhanced is not None else b"%c.0.0" % code[0]
    counter = "deferred" if code[:1] == b"4" else "bounced"
    line = b"%b %b As the recipient's address asks\r\n" % (code, status)
    return Fate(Point(point.decode().lower()), line, _CLOSE if code == b"421" else _GO_ON, counter)
