"""What becomes of the recipient and of the connection, given what happened to a message.

Policy, and nothing else: `transaction` reports, this file judges, the sender acts. Pure; no socket, no clock.

Invariants
- CONCLUDES names every stage and event that can conclude a message, by mode; OUTCOMES has a cell for each of them.
- SENT only for a 2xx to the body. BOUNCED only for a 5xx that is not about us.
- UNCERTAIN exactly where the body was handed over and no final reply came (RFC 1047): such a recipient may have the
  message already, and only the campaign's policy may send it again.
- A 503 or an unexpected 3xx says that the two ends lost step, so it is transient whatever its first digit.
- A reply that blames us is never charged to the recipient: class "sender" or "throttling", state DEFERRED.

A session that cannot be opened (stages CONNECT, EHLO, TLS, AUTH) has no row: no recipient was in flight, so none
changes state. `session.SessionError` carries what happened, and it always blames the relay's settings or the relay.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from actors.smtp.events import Concluded, Event, Mode, Stage
from actors.smtp.rules import About, rule_of
from shm.files.ledger import States

__all__ = ["CONCLUDES", "DUE_NOW_ATTEMPTS_MAX", "OUTCOMES", "STAGES", "Connection", "Outcome", "decide"]

DUE_NOW_ATTEMPTS_MAX = 3  # a recipient whose every attempt kills the connection must not be tried in a tight loop

STAGES = (Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.BODY)


class Connection(Enum):
    """What to do with the connection."""

    KEEP = "keep"  # the next message may go on it
    CLOSE = "close"  # close it now; what else is in flight on it is lost
    STEP_DOWN = "step_down"  # close it now; open the next one to this relay one mode lower, and remember that


class Outcome(NamedTuple):
    """The verdict.

    state    of the recipient in the ledger: SENT, DEFERRED, BOUNCED or UNCERTAIN
    action   for the connection
    blame    whom or what the reply is about; the retry class, too
    due_now  a DEFERRED recipient may be tried again at once, on another connection: nothing was said about it
    """

    state: States
    action: Connection
    blame: About
    due_now: bool


Cell = tuple[States, Connection]

_ACCEPTED: Cell = (States.SENT, Connection.KEEP)
_LATER: Cell = (States.DEFERRED, Connection.KEEP)
_REFUSED: Cell = (States.BOUNCED, Connection.KEEP)
_HUNG_UP: Cell = (States.DEFERRED, Connection.CLOSE)
_NO_STEP: Cell = (States.DEFERRED, Connection.STEP_DOWN)
_UNKNOWN: Cell = (States.UNCERTAIN, Connection.CLOSE)
_UNKNOWN_STEP: Cell = (States.UNCERTAIN, Connection.STEP_DOWN)

_GRID: dict[Event, tuple[Cell | None, Cell | None, Cell | None, Cell | None]] = {
    # event                MAIL        RCPT           DATA           BODY
    # A 2xx to MAIL or RCPT concludes nothing; to DATA, which wants 354, it means that a reply too many or too few came.
    Event.OK:             (None,          None,          _NO_STEP,      _ACCEPTED),
    Event.TRANSIENT:      (_LATER,        _LATER,        _LATER,        _LATER),
    # When MAIL is answered the server has not heard of the recipient: the refusal is about us.
    Event.PERMANENT:      (_LATER,        _REFUSED,      _REFUSED,      _REFUSED),
    Event.BAD_SEQUENCE:   (_NO_STEP,      _NO_STEP,      _NO_STEP,      _NO_STEP),
    # A 3xx to the dot is no final reply, and the body is over there.
    Event.INTERMEDIATE:   (_NO_STEP,      _NO_STEP,      _NO_STEP,      _UNKNOWN_STEP),
    # 421 to the dot is a final reply: not accepted.
    Event.CLOSING:        (_HUNG_UP,      _HUNG_UP,      _HUNG_UP,      _HUNG_UP),
    Event.LOST_BEFORE:    (_HUNG_UP,      _HUNG_UP,      _HUNG_UP,      _HUNG_UP),
    Event.LOST_AFTER:     (_UNKNOWN,      _UNKNOWN,      _UNKNOWN,      _UNKNOWN),
    # A server that answered MAIL and no more may have dropped what was pipelined behind it.
    Event.TIMEOUT_BEFORE: (_HUNG_UP,      _NO_STEP,      _NO_STEP,      _HUNG_UP),
    Event.TIMEOUT_AFTER:  (_UNKNOWN_STEP, _UNKNOWN_STEP, _UNKNOWN,      _UNKNOWN),
    Event.GARBAGE_BEFORE: (_NO_STEP,      _NO_STEP,      _NO_STEP,      _NO_STEP),
    Event.GARBAGE_AFTER:  (_UNKNOWN_STEP, _UNKNOWN_STEP, _UNKNOWN_STEP, _UNKNOWN_STEP),
}  # fmt: skip

OUTCOMES: dict[tuple[Stage, Event], Cell] = {
    (stage, event): cell for event, cells in _GRID.items() for stage, cell in zip(STAGES, cells, strict=True) if cell
}

_REFUSALS = frozenset({Event.TRANSIENT, Event.PERMANENT, Event.BAD_SEQUENCE, Event.CLOSING})
_ENDS_BEFORE = frozenset({Event.LOST_BEFORE, Event.TIMEOUT_BEFORE, Event.GARBAGE_BEFORE})
_ENDS_AFTER = frozenset({Event.LOST_AFTER, Event.TIMEOUT_AFTER, Event.GARBAGE_AFTER})
_BY_DATA: dict[Stage, frozenset[Event]] = {
    Stage.MAIL: _REFUSALS | _ENDS_BEFORE | {Event.INTERMEDIATE},
    Stage.RCPT: _REFUSALS | _ENDS_BEFORE | {Event.INTERMEDIATE},
    Stage.DATA: _REFUSALS | _ENDS_BEFORE | {Event.INTERMEDIATE, Event.OK},
    Stage.BODY: _REFUSALS | _ENDS_AFTER | {Event.INTERMEDIATE, Event.OK},
}
# What can conclude a message. In a window the body is over there at every stage, so a 3xx is garbage "after" like any
# other; "before" only behind a 421.
CONCLUDES: dict[Mode, dict[Stage, frozenset[Event]]] = {
    Mode.LOCKSTEP: _BY_DATA,
    Mode.PIPELINING: _BY_DATA,
    Mode.BDAT: {
        Stage.MAIL: _REFUSALS | _ENDS_AFTER | {Event.LOST_BEFORE, Event.TIMEOUT_BEFORE},
        Stage.RCPT: _REFUSALS | _ENDS_AFTER,
        Stage.BODY: _REFUSALS | _ENDS_AFTER | {Event.OK},
    },
}

_SENT = Outcome(*_ACCEPTED, About.NONE, False)
_SAYS_NOTHING = frozenset(
    {
        Event.OK,
        Event.BAD_SEQUENCE,
        Event.INTERMEDIATE,
        Event.LOST_BEFORE,
        Event.TIMEOUT_BEFORE,
        Event.GARBAGE_BEFORE,
    }
)
_BLAMES_US = frozenset({About.SENDER, About.THROTTLING, About.GREYLISTING})


def decide(concluded: Concluded, attempts: int = 1) -> Outcome:
    """The verdict on one message. Hot for what was accepted.

    attempts  of this recipient, this one included: from DUE_NOW_ATTEMPTS_MAX on it waits like any other
    """
    number, stage, reply, event = concluded  # noqa: RUF059  (one unpacking is cheaper than three attributes)
    if event is Event.OK and stage is Stage.BODY:
        return _SENT
    about = About.OTHER
    if reply is not None and event in (Event.TRANSIENT, Event.PERMANENT, Event.CLOSING):
        about = _about(concluded)
        if about is About.STEP:
            event = Event.BAD_SEQUENCE
            about = About.OTHER
    state, action = OUTCOMES[stage, event]
    if state is States.BOUNCED and about in _BLAMES_US:
        state = States.DEFERRED
    # A relay that says goodbye to MAIL has had enough of this connection, not of this recipient; unless it says more.
    goodbye = event is Event.CLOSING and stage is Stage.MAIL and about is About.OTHER
    untold = goodbye or event in _SAYS_NOTHING
    due_now = state is States.DEFERRED and untold and attempts < DUE_NOW_ATTEMPTS_MAX
    return Outcome(state, action, about, due_now)


def _about(concluded: Concluded) -> About:
    """Whom a refusal is about: a rule if one fits, else what the stage makes most likely."""
    assert concluded.reply is not None
    rule = rule_of(concluded.reply)
    if rule is not None and not (concluded.stage is Stage.MAIL and rule.about is About.RECIPIENT):
        return rule.about
    if concluded.event is Event.PERMANENT:
        if concluded.stage is Stage.MAIL:
            return About.SENDER
        if concluded.stage is Stage.RCPT:
            return About.RECIPIENT
    return About.OTHER
