"""Whole-campaign throughput beside its yardsticks, in one run: the ratio is the figure, absolute numbers drift.

    python -m bench.campaign [--messages 40000] [--rounds 3] [--connections 10]

All send messages of about 4 kB to the same `smtp-sink` (the Postfix project's) on loopback:
- engine: the real engine, started by `ctl start`; a personalised campaign, limits off; sent / seconds of its account,
  that is from the first attempt to the last conclusion, ledger and all
- smtp-source -d: the Postfix project's C generator, one constant message, connections kept
- Python loop: what a Python user would write: EmailMessage and aiosmtplib, the same number of connections, uvloop
The rounds alternate, so that a machine that slows down slows all three.
"""

import argparse
import asyncio
import contextlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

from broker.contract.paths import StateDir
from ctl.client import Client

LINE = "Autumn brings new colours to the shop: coats, scarves and boots, all at a good price.\n"
BODY_BYTES = 4096
CTL = [sys.executable, "-m", "ctl.main"]


@contextlib.contextmanager
def smtp_sink() -> Iterator[int]:
    """Postfix's smtp-sink on a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen(["smtp-sink", "-u", "nobody", "-m", "2000", f"127.0.0.1:{port}", "1024"])
    try:
        deadline = time.monotonic() + 5
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
        yield port
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def engine(directory: Path, port: int, connections: int) -> Iterator[StateDir]:
    """A real engine whose one relay is the sink."""
    config = directory / "ecm.toml"
    config.write_text(
        f'[relay.default]\nhost = "127.0.0.1"\nport = {port}\ntls = "none"\nconnections = {connections}\n'
    )
    state = StateDir(directory / "var")
    options = ["--state", str(state.root)]
    subprocess.run([*CTL, "start", "--config", str(config), *options], check=True, stderr=subprocess.DEVNULL)
    try:
        yield state
    finally:
        subprocess.run([*CTL, "stop", *options], check=True, stderr=subprocess.DEVNULL)


def write_campaign(directory: Path, messages: int) -> dict[str, str]:
    """Recipients and templates; returns the templates by name."""
    with (directory / "recipients.csv").open("w") as file:
        file.write("email,first_name,city\n")
        file.writelines(f"user{i}@example{i % 50}.com,Name {i},City {i % 300}\n" for i in range(messages))
    html = f"<p>Dear {{{{ first_name }}}},</p>\n{LINE * (BODY_BYTES // len(LINE) - 4)}<p>{{{{ city }}}}</p>\n"
    return {"message.html": html, "message.txt": "Dear {{ first_name }} of {{ city }}\n"}


def run_engine(state: StateDir, directory: Path, attached: dict[str, str], name: str) -> float:
    """Send one campaign; messages a second of its account."""
    text = (
        f'name = "{name}"\nsubject = "Hello {{{{ first_name }}}}"\nfrom = "News <news@example.com>"\n'
        'html = "message.html"\ntext = "message.txt"\nrecipients = "recipients.csv"\nrelay = "default"\n'
        '[unsubscribe]\nmailto = "unsubscribe@example.com"\n[rate]\nper_second = 0\n'
    )
    args = {
        "text": text,
        "file": "campaign.toml",
        "attached": attached,
        "recipients": str(directory / "recipients.csv"),
    }
    with Client(state) as client:
        campaign = client.request("campaign.send", {**args, "checked": True}, within_s=300)["campaign"]
        deadline = time.monotonic() + 300
        while (account := client.request("campaign.show", {"campaign": campaign}))["state"] != "finished":
            if time.monotonic() > deadline:
                raise SystemExit(f"the campaign did not finish: {account}")
            time.sleep(0.1)
    if account["sent"] != account["audience"]:
        raise SystemExit(f"not everybody was sent to: {account}")
    return float(account["sent"] / account["seconds"])


def run_source(port: int, messages: int, connections: int) -> float:
    """The Postfix project's generator; messages a second."""
    began = time.monotonic()
    subprocess.run(
        ["smtp-source", "-d", "-s", str(connections), "-m", str(messages), "-l", str(BODY_BYTES),
         "-f", "a@example.com", "-t", "b@example.com", f"127.0.0.1:{port}"],
        check=True,
    )  # fmt: skip
    return messages / (time.monotonic() - began)


async def _loop(port: int, messages: int, connections: int) -> None:
    import aiosmtplib

    numbers = iter(range(messages))

    async def worker() -> None:
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, use_tls=False, start_tls=False) as smtp:
            for number in numbers:
                message = EmailMessage()
                message["From"] = "News <news@example.com>"
                message["To"] = f"user{number}@example.com"
                message["Subject"] = f"Hello Name {number}"
                message.set_content(f"Dear Name {number}\n")
                message.add_alternative(
                    f"<p>Dear Name {number}</p>\n{LINE * (BODY_BYTES // len(LINE) - 4)}", subtype="html"
                )
                await smtp.send_message(message)

    await asyncio.gather(*(worker() for _ in range(connections)))


def run_python(port: int, messages: int, connections: int) -> float:
    """The loop a Python user would write; messages a second."""
    import uvloop

    began = time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_loop(port, messages, connections))
    return messages / (time.monotonic() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=10)
    options = parser.parse_args()
    if shutil.which("smtp-sink") is None:
        raise SystemExit("error: smtp-sink is missing\nhint: apt-get install --no-install-recommends postfix")
    directory = Path(tempfile.mkdtemp(prefix="ecm-bench-", dir="/tmp"))  # short: socket paths have 107 bytes
    rates: dict[str, list[float]] = {"engine": [], "smtp-source -d": [], "Python loop": []}
    try:
        attached = write_campaign(directory, options.messages)
        with smtp_sink() as port, engine(directory, port, options.connections) as state:
            run_engine(state, directory, attached, "warm-up")
            for number in range(options.rounds):
                rates["engine"].append(run_engine(state, directory, attached, f"round-{number}"))
                rates["smtp-source -d"].append(run_source(port, options.messages, options.connections))
                rates["Python loop"].append(run_python(port, options.messages // 20, options.connections))
    finally:
        shutil.rmtree(directory)
    print(f"{options.messages:,} messages of {BODY_BYTES} bytes, {options.connections} connections, messages a second")
    for name, values in rates.items():
        print(f"{name:<16}{statistics.median(values):>10,.0f}   ({', '.join(f'{v:,.0f}' for v in values)})")
    for name in ("smtp-source -d", "Python loop"):
        ratios = [mine / theirs for mine, theirs in zip(rates["engine"], rates[name], strict=True)]
        print(f"engine / {name:<16}{statistics.median(ratios):>8.2f}   ({', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
