"""The words in which SMTP transactions are reported: modes, stages, events, and the fate of a message.

Values only. What they mean for a recipient is said in `outcome`; how they come about, in `data` and `bdat`.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple

from actors.smtp.reply import Reply

__all__ = ["Concluded", "Event", "Mode", "Stage", "event_of"]


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
    BODY = 8  # the dot that ends the message, or the BDAT that holds it
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
    stage   whose reply (or missing reply) decided it: MAIL, RCPT, DATA or BODY
    reply   that reply; None if none came
    event   what happened
    """

    number: int
    stage: Stage
    reply: Reply | None
    event: Event


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
        return Event.OK if stage is Stage.DATA and code == 354 else Event.INTERMEDIATE
    return Event.OK
