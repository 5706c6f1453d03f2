"""Fills the tables of docs/smtp.md from the code that decides.

    python -m actors.smtp.pages docs/smtp.md            rewrites them
    python -m actors.smtp.pages docs/smtp.md --check    exit 1 if they are stale

How a table stands on its page: `actors/page_tables.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from actors import page_tables
from actors.smtp.events import Concluded, Event, Mode, Stage
from actors.smtp.outcome import CONCLUDES, Connection, decide
from actors.smtp.reply import Reply
from actors.smtp.rules import MEANING, RULES, About
from actors.smtp.session import deadline_s
from broker.contract.endpoint import Endpoint
from broker.contract.relay import Relay

__all__ = ["fill", "main"]

_HAPPENED = {
    Event.OK: "2xx",
    Event.TRANSIENT: "4xx",
    Event.PERMANENT: "5xx",
    Event.BAD_SEQUENCE: "503",
    Event.INTERMEDIATE: "3xx that is not the 354 to DATA",
    Event.CLOSING: "421",
    Event.LOST_BEFORE: "connection lost, the body not handed over",
    Event.LOST_AFTER: "connection lost, the body handed over",
    Event.TIMEOUT_BEFORE: "deadline passed, the body not handed over",
    Event.TIMEOUT_AFTER: "deadline passed, the body handed over",
    Event.GARBAGE_BEFORE: "no SMTP reply, or one nobody asked for; the body not handed over",
    Event.GARBAGE_AFTER: "the same, the body handed over",
}
_HAPPENED_IN_WINDOW = {
    Event.BAD_SEQUENCE: "503; any refusal of RSET; 500, 501, 502 or 504 to BDAT",
    Event.LOST_BEFORE: "connection lost behind a 421",
    Event.LOST_AFTER: "connection lost",
    Event.TIMEOUT_BEFORE: "deadline passed behind a 421",
    Event.TIMEOUT_AFTER: "deadline passed",
    Event.GARBAGE_AFTER: "no SMTP reply, or a 3xx",
}
_THEN = {Connection.KEEP: "", Connection.CLOSE: "; close", Connection.STEP_DOWN: "; step down"}
_TYPICAL = {Event.TRANSIENT: 450, Event.PERMANENT: 550, Event.BAD_SEQUENCE: 503, Event.CLOSING: 421}


def _cell(mode: Mode, stage: Stage, event: Event) -> str:
    if event not in CONCLUDES[mode][stage]:
        return "goes on" if event is Event.OK else ""
    reply = Reply(_TYPICAL[event], None, "") if event in _TYPICAL else None
    outcome = decide(Concluded(0, stage, reply, event))
    at_once = ", at once" if outcome.due_now else ""
    return f"{outcome.state.name.lower()}{at_once}{_THEN[outcome.action]}"


def _outcomes(mode: Mode, names: list[str], happened: dict[Event, str]) -> str:
    stages = CONCLUDES[mode]
    rows = [
        f"| {happened[event]} | {' | '.join(_cell(mode, stage, event) for stage in stages)} |"
        for event in Event
        if any(event in events for events in stages.values())
    ]
    return "\n".join([f"| what happened | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|", *rows])


def by_data() -> str:
    """The table of outcomes in lock-step and with PIPELINING."""
    return _outcomes(Mode.PIPELINING, ["MAIL", "RCPT", "DATA", "the dot"], _HAPPENED)


def by_bdat() -> str:
    """The table of outcomes in a window of BDAT."""
    return _outcomes(Mode.BDAT, ["RSET, MAIL", "RCPT", "BDAT"], {**_HAPPENED, **_HAPPENED_IN_WINDOW})


def classes() -> str:
    """The reply classes."""
    rows = [f"| `{about}` | {MEANING[about]} |" for about in About if about is not About.NONE]
    return "\n".join(["| class | the reply is about |", "|---|---|", *rows])


def rules() -> str:
    """The rules in the order in which they are tried."""
    rows = [
        f"| `{rule.about}` | {rule.example.replace('<', '&lt;')} | `{_escaped(rule.pattern.pattern)}` |"
        for rule in RULES
    ]
    return "\n".join(["| class | the reply that prompted it | pattern |", "|---|---|---|", *rows])


def _escaped(pattern: str) -> str:
    return pattern.replace("|", "\\|")


def deadlines() -> str:
    """Seconds a relay may take, as shipped."""
    relay = Endpoint.from_map(Relay.model_validate({"host": "localhost"}).to_map())
    words = {Stage.IDLE: "an idle connection is kept", Stage.CONNECT: "TCP", Stage.BODY: "the dot, or BDAT"}
    rows = [
        f"| {words.get(stage, stage.name)} | {deadline_s(relay, stage):g} |"
        for stage in Stage
        if stage not in (Stage.RSET, Stage.QUIT)
    ]
    greeting = f"| greeting | {relay.timeouts_s['greeting']:g} |"
    return "\n".join(["| waiting for | seconds |", "|---|---|", rows[1], greeting, *rows[2:], rows[0]])


TABLES: dict[str, Callable[[], str]] = {
    "outcomes by DATA": by_data,
    "outcomes by BDAT": by_bdat,
    "classes": classes,
    "rules": rules,
    "deadlines": deadlines,
}


def fill(page: str) -> str:
    """The page with its tables as the code would have them. Raises ValueError if one has no place on it."""
    return page_tables.fill(page, TABLES)


def main(argv: list[str] | None = None) -> int:
    """Rewrite or check a page; returns the exit status."""
    return page_tables.main(argv, TABLES, "actors.smtp.pages")


if __name__ == "__main__":
    sys.exit(main())
