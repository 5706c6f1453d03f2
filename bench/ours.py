"""Our own side of a benchmark: campaigns of messages of a wanted size, and a real engine that sends them.

The engine is started by the real `ctl start` in a temporary directory and stopped in the end; a campaign is sent over
the control API as `ctl send` does it. A campaign's rate is its account's: from the first attempt to the last
conclusion, ledger and all. CPU is that of every process of the instance (broker, senders, loader, monitor and
multiprocessing's tracker), from the request to the end of the campaign: the audience's snapshot is in it.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from actors.message.compose import Composer
from broker.contract.campaign import parse_campaign
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from ctl.client import Client

__all__ = ["Campaign", "Engine", "Sent", "engine", "relay"]

LINE = "<p>Autumn brings new colours: coats, scarves and boots, all at a good price.</p>\n"
PLAIN = "Autumn brings new colours: coats, scarves and boots, at a good price.\n"
LOOK_S = 0.1
SHARE_OF_TEXT = 0.25  # of the filler stands in the text part


class Sent(NamedTuple):
    """What came of a campaign: messages a second, its seconds, CPU of all our processes in us a message, account."""

    rate: float
    seconds: float
    cpu_us: float
    account: dict[str, Any]


@dataclass(frozen=True)
class Campaign:
    """Recipients and templates of personal messages, HTML and text, of nearly the wanted size.

    message_bytes   size of one composed message, header included: what a yardstick has to send too
    """

    recipients: Path
    messages: int
    html: str
    text: str
    message_bytes: int

    @classmethod
    def make(cls, directory: Path, messages: int, message_bytes: int) -> Campaign:
        """Write the recipients and fit the templates to the size."""
        recipients = directory / f"recipients-{messages}.csv"
        with recipients.open("w") as file:
            file.write("email,first_name,city\n")
            file.writelines(f"user{i}@example{i % 50}.com,Name {i},City {i % 300}\n" for i in range(messages))
        least, more = _composed_bytes(*_templates(0)), _composed_bytes(*_templates(100))
        html, text = _templates(max(0, round((message_bytes - least) / (more - least) * 100)))
        return cls(recipients, messages, html, text, _composed_bytes(html, text))

    def rendered(self, number: int) -> tuple[str, str]:
        """HTML and text for a recipient, as a program without an engine would make them."""
        fields = {"first_name": f"Name {number}", "city": f"City {number % 300}", "email": f"user{number}@example.com"}
        html, text = self.html, self.text
        for name, value in fields.items():
            html, text = html.replace(f"{{{{ {name} }}}}", value), text.replace(f"{{{{ {name} }}}}", value)
        return html, text

    def request(self, name: str, relay: str) -> dict[str, Any]:
        """Arguments of `campaign.send`."""
        return {
            "text": _spec(name, relay),
            "file": "campaign.toml",
            "attached": {"message.html": self.html, "message.txt": self.text},
            "recipients": str(self.recipients),
            "checked": True,
        }


def _templates(lines: int) -> tuple[str, str]:
    text_lines = round(lines * SHARE_OF_TEXT)
    html = (
        "<html><body>\n<p>Dear {{ first_name }},</p>\n"
        + LINE * (lines - text_lines)
        + "<p>See you in {{ city }}!</p>\n<p>Sent to {{ email }}.</p>\n</body></html>\n"
    )
    return html, "Dear {{ first_name }},\n\n" + PLAIN * text_lines + "\nSee you in {{ city }}!\nSent to {{ email }}.\n"


def _spec(name: str, relay: str) -> str:
    return (
        f'name = "{name}"\nsubject = "{{{{ first_name }}}}, autumn has come to {{{{ city }}}}"\n'
        'from = "News <news@example.com>"\nhtml = "message.html"\ntext = "message.txt"\n'
        f'recipients = "recipients.csv"\nrelay = "{relay}"\n'
        '[unsubscribe]\nmailto = "unsubscribe@example.com"\n[rate]\nper_second = 0\n'
    )


def _composed_bytes(html: str, text: str) -> int:
    attached = {"message.html": html, "message.txt": text}
    spec = parse_campaign(_spec("bench", "default"), "campaign.toml", attached).to_map()
    fields = {"email": "user12345@example12.com", "first_name": "Name 12345", "city": "City 123"}
    return len(Composer(spec, "ab" * 16, 1, "email").compose(fields, b"0123456789abcdef", 1_795_516_093).data)


def relay(name: str, port: int, connections: int, *, host: str = "127.0.0.1", tls: str = "none", more: str = "") -> str:
    """A relay of ecm.toml. `more`: further lines."""
    lines = f'host = "{host}"\nport = {port}\ntls = "{tls}"\nconnections = {connections}\n{more}'
    return f"[relay.{name}]\n{lines}\n"


class Engine:
    """A running engine. Raises SystemExit with one line when a campaign does not end well."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        with Client(state) as client:
            self._actors = client.request("engine.stats")["actors"]
        broker = next(actor["pid"] for actor in self._actors if actor["kind"] == "broker")
        self._broker = psutil.Process(broker)

    def senders(self) -> list[psutil.Process]:
        """The sender processes."""
        return [psutil.Process(actor["pid"]) for actor in self._actors if actor["kind"] == "sender"]

    def processes(self) -> list[psutil.Process]:
        """Every process of the instance."""
        return [self._broker, *self._broker.children(recursive=True)]

    def cpu_s(self) -> float:
        """Seconds of CPU that all processes of the instance have used, those that have ended included."""
        return sum(sum(process.cpu_times()[:4]) for process in self.processes())

    def stats(self) -> dict[str, Any]:
        """What `ctl stats --json` prints."""
        with Client(self.state) as client:
            return client.request("engine.stats")

    def send(
        self,
        campaign: Campaign,
        name: str,
        *,
        relay: str = "default",
        within_s: float = 600.0,
        watch: Callable[[dict[str, Any]], None] = lambda _account: None,
    ) -> Sent:
        """Send a campaign and wait for its end. `watch` sees its account now and then, and once it is finished."""
        before = self.cpu_s()
        with Client(self.state) as client:
            try:
                number = client.request("campaign.send", campaign.request(name, relay), within_s=within_s)["campaign"]
            except EcmError as error:
                raise SystemExit(f"error: the campaign cannot be sent: {error}") from error
            deadline = time.monotonic() + within_s
            while True:
                account = client.request("campaign.show", {"campaign": number})
                watch(account)
                if account["state"] == "finished":
                    break
                if time.monotonic() > deadline:
                    raise SystemExit(f"error: the campaign is not finished after {within_s:g} s: {_told(account)}")
                time.sleep(LOOK_S)
        if account["sent"] != account["audience"]:
            raise SystemExit(f"error: not everybody was sent to: {_told(account)}")
        cpu_us = (self.cpu_s() - before) / account["sent"] * 1e6
        return Sent(account["sent"] / account["seconds"], account["seconds"], cpu_us, account)


def _told(account: dict[str, Any]) -> str:
    keys = ("state", "reason", "audience", "sent", "deferred", "bounced", "failed", "uncertain", "pending")
    return ", ".join(f"{key} {account[key]}" for key in keys)


@contextlib.contextmanager
def engine(directory: Path, settings: str, *, prefix: Sequence[str] = ()) -> Iterator[Engine]:
    """An engine with these settings, stopped at the end.

    directory   short: paths of sockets have at most 107 bytes
    prefix      what its command line stands behind, as `ip netns exec NAME` or `taskset -c 0`
    """
    directory.mkdir(exist_ok=True)
    config = directory / "ecm.toml"
    config.write_text(settings)
    ctl = [sys.executable, "-m", "ctl.main"]
    options = ["--state", str(directory / "var")]
    started = subprocess.run(
        [*prefix, *ctl, "start", "--config", str(config), *options], check=False, capture_output=True, text=True
    )
    if started.returncode != 0:
        log = directory / "var" / "log" / "engine.log"
        lines = log.read_text().splitlines() if log.exists() else started.stderr.splitlines()
        raise SystemExit(f"error: the engine did not start: {lines[-1] if lines else 'it said nothing'}")
    try:
        yield Engine(StateDir(directory / "var"))
    finally:
        subprocess.run([*ctl, "stop", "--now", *options], check=False, capture_output=True)
