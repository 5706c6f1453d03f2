"""What one sender process can do: messages a second and CPU per message, whole path, one shard after another.

    python -m bench.sender [--messages 20000] [--bytes 4096] [--connections 10] [--sink smtp-sink|ours|postfix]
                           [--mode bdat|pipelining|lockstep] [--sync-ms 50]

The sender claims, syncs, composes, records and sends to a sink on loopback: Postfix's `smtp-sink` (which takes no
BDAT), the rehearsal server, or a real Postfix (as root).  CPU is the sender process's own, all threads.  `busy` is the
share of the time that it had a core; of the rest it waited for its relay, or, which the involuntary switches tell, for
a core: each write wakes a sink on the same machine, and the kernel likes to run it at once on the core of its waker.
So compare CPU per message rather than messages a second.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from bench.peers import need, our_sink, place, postfix, smtp_sink
from tests.fixtures.lone_sender import ROW, LoneSender, relay_map

SHARD_ROWS = 10_000
SLOTS = 3  # leases held at once, each a third of a shard behind the one before: as a broker does it
MODES = {"bdat": 3, "pipelining": 2, "lockstep": 1}
TEMPLATE = (
    "<p>Dear {{ first_name }},</p>\n"
    "{filler}\n"
    '<p><a href="https://example.com/u?e={{ email | urlencode }}">Unsubscribe</a> {{ first_name }}</p>\n'
)
LINE = "<p>Autumn brings new colours to the shop: coats, scarves and boots, all at a good price.</p>\n"


@contextlib.contextmanager
def peer(kind: str) -> Iterator[Any]:
    """The relay: host and port."""
    if kind == "smtp-sink":
        with smtp_sink() as port:
            yield SimpleNamespace(host="127.0.0.1", port=port)
    elif kind == "ours":
        with our_sink() as ours:
            yield SimpleNamespace(host="127.0.0.1", port=ours.port)
    else:
        need("postfix", root=True)
        with postfix() as real:
            yield SimpleNamespace(host="127.0.0.1", port=real.port)


class Run:
    """A lone sender and its campaigns, one shard each."""

    def __init__(self, options: argparse.Namespace, relay: Any, directory: Path) -> None:
        self._html = TEMPLATE.replace("{filler}", LINE * max(1, (options.bytes - 500) // len(LINE)))
        relays = {"default": relay_map(relay, connections=options.connections)}
        self.lone = LoneSender(directory / "state", relays, ledger={"sync_ms": options.sync_ms})
        for index in range(len(relays)):
            self.lone.relays.allow(ROW, index, options.connections, 1, MODES[options.mode])
        self._leases: dict[int, tuple[int, int]] = {}  # slot -> lease, campaign
        self._made = 0
        self.sent = 0

    def campaign(self, rows: int) -> int:
        """Write a campaign of so many recipients; its number."""
        self._made += 1
        addresses = [f"user{self._made}.{n}@example.com" for n in range(rows)]
        self.lone.campaign(self._made, addresses, text=None, html=self._html)
        return self._made

    def work(self, sizes: list[int]) -> None:
        """Send campaigns of these sizes, written beforehand, `SLOTS` at a time."""
        waiting = [self.campaign(rows) for rows in sizes]
        self.began = time.monotonic()
        while waiting or self._leases:
            for slot in range(SLOTS):
                if slot not in self._leases and waiting:
                    campaign = waiting.pop(0)
                    self._leases[slot] = self.lone.offer(campaign, slot=slot), campaign
            self.lone.wait(self._any_done, "a lease done")
        self.seconds = time.monotonic() - self.began

    def _any_done(self) -> bool:
        done = [s for s, (number, _) in self._leases.items() if self.lone.table.acknowledged(ROW, s)[1] == number]
        for slot in done:
            number, _ = self._leases.pop(slot)
            self.sent += self.lone.wait_done(number).sent
        return bool(done)


def measure(options: argparse.Namespace, relay: Any, directory: Path) -> None:
    """Run the campaigns and print the figures."""
    run = Run(options, relay, directory)
    try:
        process = psutil.Process(run.lone.child.pid)
        run.work([min(options.messages, 2000)])
        warm, run.sent = run.sent, 0
        rows = min(SHARD_ROWS, options.messages)
        shards = max(1, options.messages // rows)
        sizes = [rows] * shards
        for slot in range(1, min(SLOTS, shards)):  # so that leases do not end together
            sizes[slot - 1] = rows * slot // SLOTS
        sizes += [options.messages - sum(sizes)] * (sum(sizes) < options.messages)
        before, switched, memory = process.cpu_times(), process.num_ctx_switches(), process.memory_info().rss
        print(f"pid {process.pid}, {warm} messages to warm up", flush=True)
        run.work(sizes)
        after, switches, rss = process.cpu_times(), process.num_ctx_switches(), process.memory_info().rss
        mode = {number: name for name, number in MODES.items()}[run.lone.relays.use(ROW, 0).mode]
    finally:
        run.lone.close()
    user, system = (1e6 * (b - a) / run.sent for a, b in zip(before[:2], after[:2], strict=True))
    print(
        f"{run.sent:,} messages of {options.bytes} bytes, {options.connections} connections, {options.sink}, {mode}: "
        f"{run.sent / run.seconds:,.0f}/s\n"
        f"  sender CPU {user + system:.1f} us a message (user {user:.1f}, system {system:.1f}), "
        f"busy {(user + system) * run.sent / run.seconds / 1e4:.0f}%\n"
        f"  switches a message: {(switches.voluntary - switched.voluntary) / run.sent:.3f} voluntary, "
        f"{(switches.involuntary - switched.involuntary) / run.sent:.3f} involuntary\n"
        f"  RSS {memory / 1e6:.1f} MB at the start, {rss / 1e6:.1f} MB at the end"
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=4096)
    parser.add_argument("--connections", type=int, default=10)
    parser.add_argument("--sync-ms", type=int, default=50)
    parser.add_argument("--sink", choices=("smtp-sink", "ours", "postfix"), default="smtp-sink")
    parser.add_argument("--mode", choices=tuple(MODES), default="bdat", help="the best one to use")
    options = parser.parse_args()
    with place() as directory, peer(options.sink) as relay:
        measure(options, relay, directory)


if __name__ == "__main__":
    main()
