"""Whole-campaign throughput and CPU beside its yardsticks, in one run: the ratio is the figure, absolute numbers drift.

    python -m bench.campaign [--messages 200000] [--bytes 4096] [--rounds 3] [--connections 20]

All send messages of the same size to the same `smtp-sink` (the Postfix project's) on loopback:
- engine: the real engine, started by `ctl start`; a personal campaign, HTML and text, limits off
- smtp-source -d: the Postfix project's C generator, one constant message, as many sessions, connections kept
- Python loop: what a Python user would write: EmailMessage and aiosmtplib, as many connections, uvloop
The rounds alternate, so that a machine that slows down slows all three. CPU: of all the engine's processes together,
beside that of smtp-source.
"""

from __future__ import annotations

import asyncio
import time
from email.message import EmailMessage

from bench.figures import Rounds, aim, options_of
from bench.ours import Campaign, engine, relay
from bench.peers import need, place, smtp_sink, source

AIMS = {False: 1.5, True: 1.0}  # times the rate of smtp-source; by whether the message is large
LARGE = 20_000
AIM_CPU = 1.5
AIM_PYTHON = 15.0
PYTHON_MESSAGES = 2_000  # about three seconds


async def _loop(port: int, campaign: Campaign, connections: int) -> None:
    import aiosmtplib

    numbers = iter(range(PYTHON_MESSAGES))

    async def worker() -> None:
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, use_tls=False, start_tls=False) as smtp:
            for number in numbers:
                html, text = campaign.rendered(number)
                message = EmailMessage()
                message["From"] = "News <news@example.com>"
                message["To"] = f"user{number}@example.com"
                message["Subject"] = f"Name {number}, autumn has come to City {number % 300}"
                message.set_content(text)
                message.add_alternative(html, subtype="html")
                await smtp.send_message(message)

    await asyncio.gather(*(worker() for _ in range(connections)))


def python_loop(port: int, campaign: Campaign, connections: int) -> float:
    """The loop a Python user would write; messages a second."""
    import uvloop

    began = time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_loop(port, campaign, connections))
    return PYTHON_MESSAGES / (time.monotonic() - began)


def main() -> None:
    """Measure and print."""
    options = options_of(__doc__, 200_000).parse_args()
    need("smtp-sink", "smtp-source")
    rates, cpu = Rounds("messages a second"), Rounds("CPU, us a message")
    with (
        place() as directory,
        smtp_sink() as port,
        engine(directory, relay("default", port, options.connections)) as ours,
    ):
        campaign = Campaign.make(directory, options.messages, options.bytes)
        size = campaign.message_bytes
        print(f"{options.messages:,} messages of {size:,} bytes, {options.connections} connections", flush=True)
        ours.send(Campaign.make(directory, min(options.messages, 20_000), options.bytes), "warm-up")
        for number in range(options.rounds):
            sent = ours.send(campaign, f"round-{number}")
            rates.add("engine", sent.rate)
            cpu.add("engine", sent.cpu_us)
            theirs = source(port, options.messages, size, options.connections)
            rates.add("smtp-source -d", theirs.rate)
            cpu.add("smtp-source -d", theirs.cpu_us)
            rates.add("Python loop", python_loop(port, campaign, options.connections))
    rates.show()
    rate, python = rates.ratio("engine", "smtp-source -d"), rates.ratio("engine", "Python loop")
    cpu.show()
    used = cpu.ratio("engine", "smtp-source -d")
    kilobytes = f"{options.bytes / 1000:.0f} kB"
    aim(f"campaign of {kilobytes}, times smtp-source -d", AIMS[options.bytes >= LARGE], rate)
    if options.bytes < LARGE:
        aim(f"CPU of all our processes, {kilobytes}, times that of smtp-source", AIM_CPU, used, at_most=True)
        aim(f"campaign of {kilobytes}, times a Python loop", AIM_PYTHON, python)


if __name__ == "__main__":
    main()
