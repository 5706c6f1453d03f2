"""Memory of the senders over a long campaign: it must stay where it began.

    python -m bench.memory [--messages 2000000] [--bytes 4096] [--connections 20]

Sends one campaign into `smtp-sink` and samples every sender at the start, at each tenth and at the end. Resident memory
holds pages of shards and ledgers too, which are files and belong to the kernel's cache; "own" is what is theirs alone.
"""

from __future__ import annotations

import argparse
from typing import Any

from bench.figures import aim
from bench.ours import Campaign, Engine, engine, relay
from bench.peers import need, place, smtp_sink

AIM_MB = 80.0
AIM_GROWTH = 1.1  # highest / first tenth: what one calls flat
MB = 1e6


class Samples:
    """Resident and own memory of each sender in MB, a line for each tenth of the campaign."""

    def __init__(self, ours: Engine) -> None:
        self._senders = ours.senders()
        self._next = 0.0
        self.rows: list[tuple[float, list[float], list[float]]] = []
        self.highest = 0.0

    def watch(self, account: dict[str, Any]) -> None:
        """See an account; sample when another tenth is done."""
        self.highest = max(self.highest, *(process.memory_info().rss / MB for process in self._senders))
        done = (account.get("sent") or 0) / (account.get("audience") or 1)
        if done < self._next:
            return
        self._next = done // 0.1 * 0.1 + 0.1
        memory = [process.memory_full_info() for process in self._senders]
        self.rows.append((done, [one.rss / MB for one in memory], [one.uss / MB for one in memory]))
        told = ", ".join(f"{one.rss / MB:.1f} (own {one.uss / MB:.1f})" for one in memory)
        print(f"{done:>6.0%}   {told} MB", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=2_000_000)
    parser.add_argument("--bytes", type=int, default=4096, help="size of a whole message")
    parser.add_argument("--connections", type=int, default=20)
    options = parser.parse_args()
    need("smtp-sink")
    with (
        place() as directory,
        smtp_sink() as port,
        engine(directory, relay("default", port, options.connections)) as ours,
    ):
        campaign = Campaign.make(directory, options.messages, options.bytes)
        print(f"{options.messages:,} messages of {campaign.message_bytes:,} bytes; memory of each sender", flush=True)
        samples = Samples(ours)
        sent = ours.send(campaign, "long", watch=samples.watch, within_s=3600)
    first, last = samples.rows[1], samples.rows[-1]  # row 0 is before the first message: no template, no connection
    start, end = max(first[1]), max(last[1])
    print(f"{sent.rate:,.0f} messages/s; {start:.1f} MB after {first[0]:.0%}, {end:.1f} MB at the end")
    aim("memory of a sender at its highest, MB", AIM_MB, samples.highest, at_most=True)
    aim("memory of a sender, highest / first tenth", AIM_GROWTH, samples.highest / start, at_most=True)


if __name__ == "__main__":
    main()
