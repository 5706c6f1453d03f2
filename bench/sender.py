"""What one sender process can do: messages a second and CPU per message, whole path, one shard after another.

    python -m bench.sender [--messages 20000] [--bytes 4096] [--connections 10] [--sink postfix|ours] [--sync-ms 50]

The sender claims, syncs, composes, records and pipelines to a sink on loopback; the sink is Postfix's `smtp-sink`
(found on PATH) or the rehearsal server.  CPU is the sender process's own (user + system, all threads); sink and
sender share the machine's cores, so compare CPU per message rather than messages a second.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from bench.campaign import smtp_sink
from tests.fixtures.lone_sender import LoneSender, relay_map
from tests.fixtures.sink import RunningSink

SHARD_ROWS = 10_000
TEMPLATE = (
    "<p>Dear {{ first_name }},</p>\n"
    "{filler}\n"
    '<p><a href="https://example.com/u?e={{ email | urlencode }}">Unsubscribe</a> {{ first_name }}</p>\n'
)
LINE = "<p>Autumn brings new colours to the shop: coats, scarves and boots, all at a good price.</p>\n"


@contextmanager
def postfix_sink() -> Iterator[Any]:
    """Postfix's smtp-sink on a free port."""
    with smtp_sink() as port:
        yield SimpleNamespace(host="127.0.0.1", port=port)


@contextmanager
def our_sink() -> Iterator[Any]:
    """The rehearsal server."""
    sink = RunningSink((), None)
    try:
        yield sink
    finally:
        sink.kill()


def measure(options: argparse.Namespace, relay: Any, directory: Path) -> None:
    """Run the campaign and print its figures."""
    html = TEMPLATE.replace("{filler}", LINE * max(1, (options.bytes - 500) // len(LINE)))
    settings = {"ledger": {"sync_ms": options.sync_ms}}
    relays = {"default": relay_map(relay, connections=options.connections)}
    lone = LoneSender(directory / "state", relays, **settings)
    try:
        shards = max(1, options.messages // SHARD_ROWS)
        rows = options.messages // shards
        for campaign in range(1, shards + 1):
            addresses = [f"user{campaign}.{n}@example.com" for n in range(rows)]
            lone.campaign(campaign, addresses, text=None, html=html)
        process = psutil.Process(lone.child.pid)
        warm = lone.offer(1)
        lone.wait_done(warm)
        lone.campaign(shards + 1, [f"user{shards + 1}.{n}@example.com" for n in range(rows)], text=None, html=html)
        before, began = process.cpu_times(), time.monotonic()
        print(f"pid {lone.child.pid}", flush=True)
        open_leases = []
        for campaign in range(2, shards + 2):
            open_leases.append(lone.offer(campaign, slot=campaign % 2))
            if len(open_leases) == 2:
                lone.wait_done(open_leases.pop(0))
        for number in open_leases:
            lone.wait_done(number)
        seconds = time.monotonic() - began
        after = process.cpu_times()
        sent = sum(lone.counts(campaign).sent for campaign in range(2, shards + 2))
    finally:
        lone.close()
    user, system = (1e6 * (b - a) / sent for a, b in zip(before[:2], after[:2], strict=True))
    print(
        f"{sent} messages of {options.bytes} bytes, {options.connections} connections, {options.sink} sink: "
        f"{sent / seconds:,.0f}/s, sender CPU {user + system:.1f} us a message (user {user:.1f}, system {system:.1f})"
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=4096)
    parser.add_argument("--connections", type=int, default=10)
    parser.add_argument("--sync-ms", type=int, default=50)
    parser.add_argument(
        "--sink", choices=("postfix", "ours"), default="postfix" if shutil.which("smtp-sink") else "ours"
    )
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        (postfix_sink if options.sink == "postfix" else our_sink)() as relay,
    ):
        measure(options, relay, Path(directory))


if __name__ == "__main__":
    main()
