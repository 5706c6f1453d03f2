"""`python -m ctl.demo`: the whole engine at work, in a minute, without harm. `make demo` runs it.

Writes what `ctl init` writes into a temporary directory, makes up 10,000 recipients, starts an SMTP sink that delivers
nothing and an engine of its own, sends, shows the account and three of the delivered messages, and removes everything.

Invariants
- It touches no other engine: its state directory is its own, whatever ECM_STATE and ECM_CONFIG say.
- However it ends (Ctrl-C and SIGTERM included), no process, no shared memory and no file of it is left.
"""

import json
import os
import re
import subprocess
import sys
import time
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from broker.contract.errors import EcmError
from ctl import output
from ctl.modules import program
from ctl.stage import Stage

__all__ = ["Demo", "main", "write_recipients"]

RECIPIENTS = 10_000
SHOWN = 3
BODY_LINES = 8
HEADERS = ("From", "To", "Subject", "Date", "Message-ID", "List-Unsubscribe", "List-Unsubscribe-Post", "Content-Type")

# Names and towns that need every part of a mail's encodings.
FIRST = ("Zoë", "Björn", "Inês", "Łukasz", "Siobhán", "はるか", "Ελένη", "Anna", "Noah", "Олена", "Đorđe", "Aïcha")
LAST = ("Müller", "Ångström", "Carvalho", "Wiśniewski", "O'Brien", "佐藤", "Παπαδοπούλου", "Smith", "Шевченко", "Núñez")
CITIES = ("Zürich", "Malmö", "São Paulo", "Łódź", "Dún Laoghaire", "札幌", "Θεσσαλονίκη", "Bergen", "Київ", "Besançon")


class DemoError(Exception):
    """A step did not go as it should; the text says which."""


def main() -> int:
    """Run the demo. Returns the exit status."""
    output.prepare()
    stage = Stage("demo")
    try:
        Demo(stage).run()
    except (DemoError, EcmError, OSError, subprocess.SubprocessError) as error:
        output.say(f"error: the demo failed: {error.message if isinstance(error, EcmError) else error}")
        stage.tell_log()
        return 1
    except KeyboardInterrupt:
        output.say("interrupted: cleaning up")
        return 130
    finally:
        stage.clean()
    return 0


class Demo:
    """One run on a stage of its own."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._place = stage.place

    def run(self) -> None:
        """All steps. Raises DemoError."""
        self._ctl("init", str(self._place), quiet=True)
        write_recipients(self._place / "recipients.csv", RECIPIENTS)
        output.say(f"demo: {RECIPIENTS:,} recipients, a relay that delivers nothing, an engine in {self._place}")
        host, port = self._stage.start_sink(SHOWN)
        _edit(self._place / "ecm.toml", {"host": f'"{host}"', "port": str(port)})
        _edit(self._place / "campaign.toml", {"per_second": "0", "per_minute": "0"}, without=("burst", "wait_ms"))
        output.say("demo: it lifts the default limit of 100/s, to show what the engine can do")
        ready = self._stage.start_engine(self._place / "ecm.toml")
        output.say(f"engine ready: pid {ready['pid']}, state {self._stage.state.root}, settings {ready['settings']}")
        self._ctl("send", str(self._place / "campaign.toml"), "--yes")
        account = self._account()
        self._show_messages()
        output.line(_rate_in_words(account))

    # steps

    def _account(self) -> dict[str, Any]:
        shown = self._ctl("campaign", "list", "--json", quiet=True)
        account: dict[str, Any] = json.loads(shown)["campaigns"][0]
        if account["sent"] != RECIPIENTS:
            raise DemoError(f"{account['sent']:,} of {RECIPIENTS:,} messages were sent")
        return account

    def _show_messages(self) -> None:
        counts = self._stage.stop_sink()
        with (self._stage.kept / "messages.ndjson").open(encoding="utf-8") as file:
            delivered = [json.loads(next(file))["data"].encode("latin-1") for _ in range(SHOWN)]
        output.line()
        output.line(f"{SHOWN} of the {counts['messages']:,} messages the relay has accepted:")
        for data in delivered:
            output.line()
            for text in message_lines(data):
                output.line(text)
        output.line()

    # parts

    def _command(self, *arguments: str) -> list[str]:
        return program("ctl.main", ("--state", str(self._stage.state.root), *arguments))

    def _ctl(self, *arguments: str, quiet: bool = False) -> str:
        """Run a command as a user would; with `quiet`, its stdout is returned instead of shown."""
        stdout = subprocess.PIPE if quiet else None
        stderr = subprocess.PIPE if quiet else None
        done = subprocess.run(
            self._command(*arguments), check=False, stdout=stdout, stderr=stderr, text=True, env=self._stage.environment
        )
        if done.returncode:
            said = f": {done.stderr.strip()}" if quiet else ""
            raise DemoError(f"`ctl {arguments[0]}` ended with status {done.returncode}{said}")
        return done.stdout or ""


def write_recipients(path: Path, rows: int) -> None:
    """Made-up people, all different."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("email,first_name,last_name,city,member\n")
        for n in range(1, rows + 1):
            first, last, city = FIRST[n % len(FIRST)], LAST[n % len(LAST)], CITIES[n * 3 % len(CITIES)]
            file.write(f"reader-{n:05d}@example.com,{first},{last},{city},{'yes' if n % 3 else 'no'}\n")


def _edit(path: Path, values: dict[str, str], without: tuple[str, ...] = ()) -> None:
    """Give keys of a TOML file other values and leave some out, its comments being kept."""
    text = path.read_text(encoding="utf-8")
    for key, value in values.items():
        text, changed = re.subn(rf"(?m)^{key} = [^#\n]*?( *#.*)?$", rf"{key} = {value}\1", text, count=1)
        assert changed == 1, f"{path.name} has no {key}"
    for key in without:
        text = re.sub(rf"(?m)^{key} = .*\n", "", text, count=1)
    path.write_text(text, encoding="utf-8")


def message_lines(data: bytes) -> list[str]:
    """A delivered message for people: the headers that matter and the beginning of its text, all decoded."""
    message = message_from_bytes(data, _class=EmailMessage, policy=policy.SMTP)
    lines = [f"  {name}: {message[name]}" for name in HEADERS if message[name]]
    body = message.get_body(("plain", "html"))
    text = body.get_content().strip().splitlines() if body is not None else []
    shown = [f"  | {line}".rstrip() for line in text[:BODY_LINES]]
    return [*lines, "  |", *shown, *(["  | ..."] if len(text) > BODY_LINES else [])]


def _rate_in_words(account: dict[str, Any]) -> str:
    seconds, sent = account["seconds"], account["sent"]
    return (
        f"{sent:,} personal messages in {seconds:.2f} seconds: {sent / seconds:,.0f} a second "
        f"on {len(os.sched_getaffinity(0))} cores, each with a durable record of its outcome"
    )


if __name__ == "__main__":
    began = time.monotonic()
    status = main()
    if status == 0:
        output.say(f"demo: done in {time.monotonic() - began:.1f} s; nothing of it is left")
    sys.exit(status)
