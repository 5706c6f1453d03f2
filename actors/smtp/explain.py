"""Tells what a reply means to us: whom it is about, which rule says so, what happens at each stage.

    python -m actors.smtp.explain "550 5.7.1 ..."   [--json]

The engine decides the same way, with the same tables; nothing here is a second opinion.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

from actors.smtp.outcome import CONCLUDES, STAGES, decide
from actors.smtp.reply import Reply, read_text
from actors.smtp.rules import MEANING, About, rule_of
from actors.smtp.transaction import Concluded, Mode, Stage, event_of
from broker.contract.errors import EcmError

__all__ = ["explain", "main"]

_SLOWED = ("slowed", "slowed down, and paused when nearly all of its replies are like this")
_TO_RELAY = {
    About.SENDER: _SLOWED,
    About.THROTTLING: _SLOWED,
    About.STEP: ("stepped_down", "spoken to one mode lower for a while"),
}
_WORDS = {Stage.MAIL: "to MAIL", Stage.RCPT: "to RCPT", Stage.DATA: "to DATA", Stage.BODY: "to the message"}


def _at(stage: Stage, reply: Reply) -> dict[str, Any]:
    event = event_of(stage, reply.code)
    # 354 is what DATA hopes for; another 2xx or 3xx where it is not hoped for shows that the two ends have lost step.
    if (stage is Stage.DATA and reply.code == 354) or event not in CONCLUDES[Mode.PIPELINING][stage]:
        return {"stage": stage.name, "event": event.value, "state": None, "connection": None, "class": None}
    outcome = decide(Concluded(0, stage, reply, event))
    return {
        "stage": stage.name,
        "event": event.value,
        "state": outcome.state.name.lower(),
        "connection": outcome.action.value,
        "class": outcome.blame.value,
        "due_now": outcome.due_now,
    }


def _to_relay(about: About, code: int) -> tuple[str, str]:
    """What the reply does to the relay: a word for programs, and a line."""
    if code == 503:
        about = About.STEP
    word, line = _TO_RELAY.get(about, ("unchanged", "used as before"))
    return word, f"{line}; unless it answered DATA" if code == 354 else line


def _by_code(code: int) -> About:
    """Whom a reply is about that no rule knows."""
    return About.OTHER if code >= 400 else About.STEP if code >= 300 else About.NONE


def _whole(text: str, code: int) -> bool:
    """Whether a reply of several lines has its last one (RFC 5321 4.2.1); a log may have joined them by spaces."""
    first = re.search(rf"{code}(-?)", text)
    return first is None or not first[1] or re.search(rf"(?:^|\s){code}(?:\s|$)", text) is not None


def explain(text: str) -> dict[str, Any]:
    """What the reply in `text` means. Raises EcmError invalid_value if there is none."""
    try:
        reply = read_text(text)
    except ValueError as error:
        hint = 'quote the server\'s words: ctl explain "550 5.1.1 User unknown"'
        raise EcmError("invalid_value", str(error), hint=hint) from error
    if not _whole(text, reply.code):
        hint = f"give all of its lines, up to the one that begins with `{reply.code} `"
        raise EcmError("invalid_value", f"the reply goes on: after `{reply.code}-` another line follows", hint=hint)
    rule = rule_of(reply) if reply.code >= 400 else None
    about = rule.about if rule is not None else _by_code(reply.code)
    word, line = _to_relay(about, reply.code)
    return {
        "reply": str(reply),
        "code": reply.code,
        "enhanced": None if reply.enhanced is None else "{}.{}.{}".format(*reply.enhanced),
        "about": about.value,
        "meaning": f"{MEANING[about]}; unless it answers DATA" if reply.code == 354 else MEANING[about],
        "rule": None if rule is None else {"pattern": rule.pattern.pattern, "example": rule.example},
        "relay": {"becomes": word, "meaning": line},
        "stages": [_at(stage, reply) for stage in STAGES],
    }


def as_text(found: dict[str, Any]) -> str:
    """The same for a person."""
    lines = [found["reply"], f"about {found['meaning']}"]
    if found["rule"] is not None:
        lines.append(f"by the rule for: {found['rule']['example']}")
    for at in found["stages"]:
        if at["state"] is not None:
            again = ", tried again at once" if at["due_now"] else ""
            connection = {"keep": "connection kept", "close": "connection closed"}.get(
                at["connection"], "connection closed, the next one a mode lower"
            )
            lines.append(
                f"in answer {_WORDS[Stage[at['stage']]]:14}: {at['state']} ({at['class']}){again}, {connection}"
            )
    lines.append(f"the relay is {found['relay']['meaning']}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the explanation; returns the exit status."""
    options = argparse.ArgumentParser(prog="ctl explain", description="What a reply of an SMTP server means to us")
    options.add_argument("reply", nargs="+", help='the server\'s words, e.g. "550 5.7.1 ..."')
    options.add_argument("--json", action="store_true", help="print JSON")
    arguments = options.parse_args(argv)
    try:
        found = explain(" ".join(arguments.reply))
    except EcmError as error:
        sys.stderr.write((json.dumps({"error": error.to_map()}) if arguments.json else error.text()) + "\n")
        return error.exit
    sys.stdout.write((json.dumps(found) if arguments.json else as_text(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
