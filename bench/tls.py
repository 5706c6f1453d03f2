"""The same campaign plain and with STARTTLS into the same server, in one run: what encryption costs.

    python -m bench.tls [--messages 40000] [--bytes 4096] [--rounds 3] [--connections 20] [--server sink|postfix]

The server is our own sink, which is fast enough to show it, or a private Postfix. It encrypts on the same two cores,
so its share of the cost is in the figure.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.figures import Rounds, aim, options_of
from bench.ours import Campaign, engine, relay
from bench.peers import certificate, our_sink, place, postfix

AIM = 0.7


class Server(NamedTuple):
    """port; ca_file, what to trust."""

    port: int
    ca_file: Path


@contextlib.contextmanager
def served(kind: str, directory: Path) -> Iterator[Server]:
    """A server that offers STARTTLS and takes mail without it too."""
    if kind == "postfix":
        with postfix() as peer:
            yield Server(peer.port, peer.ca_file)
        return
    cert, key = certificate(directory)
    with our_sink("--tls", "starttls", "--cert", str(cert), "--key", str(key)) as sink:
        yield Server(sink.port, cert)


def add_server_option(parser: argparse.ArgumentParser) -> None:
    """`--server`: whom to send to."""
    parser.add_argument("--server", choices=("sink", "postfix"), default="sink", help="default: our own sink")


def main() -> None:
    """Measure and print."""
    parser = options_of(__doc__, 40_000)
    add_server_option(parser)
    options = parser.parse_args()
    rates, cpu = Rounds("messages a second"), Rounds("CPU of the engine, us a message")
    with place() as directory, served(options.server, directory) as server:
        settings = relay("plain", server.port, options.connections) + relay(
            "starttls", server.port, options.connections, tls="required", more=f'ca_file = "{server.ca_file}"'
        )
        with engine(directory, settings) as ours:
            campaign = Campaign.make(directory, options.messages, options.bytes)
            print(
                f"{options.messages:,} messages of {campaign.message_bytes:,} bytes into {options.server}", flush=True
            )
            few = Campaign.make(directory, min(options.messages, 2_000), options.bytes)
            for way in ("plain", "starttls"):
                ours.send(few, f"warm-up-{way}", relay=way)
            for number in range(options.rounds):
                for way in ("plain", "starttls"):
                    sent = ours.send(campaign, f"{way}-{number}", relay=way)
                    rates.add(way, sent.rate)
                    cpu.add(way, sent.cpu_us)
    rates.show()
    ratio = rates.ratio("starttls", "plain")
    cpu.show()
    cpu.ratio("starttls", "plain")
    aim(f"with STARTTLS into {options.server}, times plain", AIM, ratio)


if __name__ == "__main__":
    main()
