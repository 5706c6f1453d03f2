"""Through a relay that is far away: a real 50 ms round trip, one connection and many, in one run.

    python -m bench.latency [--round-trip-ms 50] [--bytes 4096] [--seconds 10] [--connections 200]

Engine and server stand at the two ends of a wire that holds each packet back (`tests/fixtures/wire.py`).
- CHUNKING, one connection: BDAT windows into a private Postfix, and into our own sink
- PIPELINING alone, one connection: one round trip a message, into the Postfix project's smtp-sink
- smtp-source -d, one connection: the yardstick, into the same smtp-sink; it waits for every reply
- CHUNKING, many connections: as many as the engine finds best up to --connections, and the same over a wire without
  delay. If the machine is busy it is the CPU that binds, not the distance. Senders, server and the wire's own process
  share it, and the last has the more to do the more packets there are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.figures import aim
from bench.ours import Campaign, engine, relay
from bench.peers import need, our_sink, place, postfix, smtp_sink, source
from tests.fixtures.wire import Wire, wire

AIM_CHUNKING = 100.0
AIM_PIPELINING = 18.0
AIM_BUSY = 0.85  # of the machine: then it is not the distance that binds
MANY_MESSAGES = 40_000


class Shares:
    """CPU that processes use from now on, in shares of one core; `rest`: everything else on the machine."""

    def __init__(self, named: dict[str, Sequence[psutil.Process]]) -> None:
        self._named = named
        self._before = {name: self._used(name) for name in named}
        self._busy, self._began = self._busy_s(), time.monotonic()

    def _used(self, name: str) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._named[name])

    @staticmethod
    def _busy_s() -> float:
        times = psutil.cpu_times()
        return float(sum(times) - times.idle - times.iowait)

    def told(self) -> tuple[str, float]:
        """`senders 0.92, server 0.60, wire 0.41 of a core; machine 98% busy`, and the last as a share."""
        seconds = time.monotonic() - self._began
        shares = [f"{name} {(self._used(name) - self._before[name]) / seconds:.2f}" for name in self._named]
        busy = (self._busy_s() - self._busy) / seconds / (psutil.cpu_count() or 1)
        return f"{', '.join(shares)} of a core; machine {busy:.0%} busy", busy


def carriers() -> list[psutil.Process]:
    """The process that is the wire."""
    return [child for child in psutil.Process().children() if any("wire.py" in word for word in child.cmdline())]


def one_connection(directory: Path, line: Wire, port: int, campaign: Campaign, name: str) -> float:
    """A campaign over one connection."""
    settings = relay("default", port, 1, host=line.far.address)
    with engine(directory / name, settings, prefix=line.near.command()) as ours:
        sent = ours.send(campaign, name)
        modes = {entry["mode"] for entry in ours.stats()["relays"]}
    print(f"{name:<34}{sent.rate:>9,.1f} messages/s   mode {', '.join(map(str, modes))}", flush=True)
    return sent.rate


def one_by_one(directory: Path, options: argparse.Namespace) -> tuple[list[float], float]:
    """Rates over one connection: with CHUNKING into each server, and with PIPELINING alone."""
    trips = int(options.seconds * 1000 / options.round_trip_ms)
    few = Campaign.make(directory, trips, options.bytes)
    more = Campaign.make(directory, trips * 10, options.bytes)
    with wire(options.round_trip_ms / 2) as line:
        there = line.far.command()
        with postfix(line.far) as peer:
            chunking = [one_connection(directory, line, peer.port, more, "chunking-postfix")]
        with our_sink("--host", line.far.address, prefix=there) as sink:
            chunking.append(one_connection(directory, line, sink.port, more, "chunking-sink"))
        with smtp_sink(line.far.address, prefix=there) as port:
            pipelining = one_connection(directory, line, port, few, "pipelining-alone")
            size, here = few.message_bytes, line.near.command()
            theirs = source(port, max(1, trips // 4), size, 1, host=line.far.address, prefix=here).rate
            print(f"{'smtp-source -d':<34}{theirs:>9,.1f} messages/s", flush=True)
    return chunking, pipelining


def many(directory: Path, options: argparse.Namespace, round_trip_ms: float) -> float:
    """Over many connections with CHUNKING: prints the rate, returns the share of the machine that was busy."""
    most = 0

    def watch(_account: dict[str, Any]) -> None:
        nonlocal most
        most = max(most, *(entry["connections"] for entry in ours.stats()["relays"]))

    with wire(round_trip_ms / 2) as line, our_sink("--host", line.far.address, prefix=line.far.command()) as sink:
        settings = relay("default", sink.port, options.connections, host=line.far.address)
        with engine(directory / f"many-{round_trip_ms:g}", settings, prefix=line.near.command()) as ours:
            ours.send(Campaign.make(directory, options.many_messages // 2, options.bytes), "warm-up")
            campaign = Campaign.make(directory, options.many_messages, options.bytes)
            shares = Shares({"senders": ours.senders(), "server": [sink.process], "wire": carriers()})
            sent = ours.send(campaign, "many", watch=watch)
            used, busy = shares.told()
    name = f"{most} connections, {round_trip_ms:g} ms away"
    print(f"{name:<34}{sent.rate:>9,.0f} messages/s   {used}", flush=True)
    return busy


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--round-trip-ms", type=float, default=50.0)
    parser.add_argument("--bytes", type=int, default=4096, help="size of a whole message")
    parser.add_argument("--seconds", type=int, default=10, help="about how long one connection is measured")
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--many-messages", type=int, default=MANY_MESSAGES, help="over all these connections")
    options = parser.parse_args()
    need("ip", "smtp-sink", "smtp-source", root=True)
    with place() as directory:
        chunking, pipelining = one_by_one(directory, options)
        many(directory, options, 0.0)
        busy = many(directory, options, options.round_trip_ms)
    trip = f"{options.round_trip_ms:g} ms away"
    aim(f"{trip}, one connection, CHUNKING, messages/s", AIM_CHUNKING, chunking)
    aim(f"{trip}, one connection, PIPELINING alone, messages/s", AIM_PIPELINING, pipelining)
    aim(f"{trip}, many connections, share of the machine that is busy", AIM_BUSY, busy)


if __name__ == "__main__":
    main()
