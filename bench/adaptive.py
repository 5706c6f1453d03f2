"""Does the engine find how many connections a relay takes best?

    python -m bench.adaptive [--seconds 45] [--best 8:800 200:2000 ...]

Against our own sink with a capacity: so many messages a second in all at its best number of connections, in proportion
fewer with fewer, and fewer with more, since they get into each other's way. The engine may open 1,000 and is told
nothing. Its rate in steady state (the last 20 of `--seconds` from its first message on, less the very end) stands
beside the best of a few fixed numbers of connections, held by `smtp-source -d` against the same sink.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from bench.figures import aim
from bench.ours import Campaign, engine, relay
from bench.peers import need, our_sink, place, source

AIM = 0.9
ALLOWED = 1_000
STEADY_S = 20.0
END_S = 3.0  # of the campaign, when the last leases run out
FIXED_S = 8.0  # long beside what opening the connections takes
MESSAGE_BYTES = 2_000


def fixed(port: int, best: int, rate: float) -> tuple[int, float]:
    """The best of half, all and twice the best number of connections: number, messages a second."""
    rates = {}
    for connections in (best // 2, best, 2 * best):
        expected = rate * min(connections / best, best / connections)
        rates[connections] = source(port, int(expected * FIXED_S), MESSAGE_BYTES, connections).rate
    print("  fixed: " + ", ".join(f"{n} connections {found:,.0f}/s" for n, found in rates.items()), flush=True)
    return max(rates.items(), key=lambda item: item[1])


def adaptive(port: int, directory: Path, rate: float, seconds: float) -> float:
    """The engine's rate in steady state, messages a second."""
    seen: list[tuple[float, int]] = []

    def watch(account: dict[str, Any]) -> None:
        if account["sent"]:
            seen.append((time.monotonic(), account["sent"]))

    with engine(directory, relay("default", port, ALLOWED)) as ours:
        campaign = Campaign.make(directory, int(rate * seconds), MESSAGE_BYTES)
        found = []

        def look(account: dict[str, Any]) -> None:
            watch(account)
            if len(seen) % 20 == 1:
                found.append(ours.stats()["relays"][0]["connections"])

        ours.send(campaign, "adaptive", watch=look)
    began = seen[0][0]
    steady = [(t, sent) for t, sent in seen if seconds - STEADY_S <= t - began <= seconds - END_S]
    (first_t, first), (last_t, last) = steady[0], steady[-1]
    print(f"  engine: connections every 2 s: {' '.join(map(str, found))}", flush=True)
    return (last - first) / (last_t - first_t)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=45.0, help="of each campaign; more than 25, at most 60")
    parser.add_argument("--best", nargs="+", default=["8:800", "200:2000"], metavar="N:R", help="sinks to try")
    options = parser.parse_args()
    need("smtp-source")
    for text in options.best:
        best, rate = int(text.partition(":")[0]), float(text.partition(":")[2])
        with place() as directory, our_sink("--rate", f"{rate:g}", "--best-connections", str(best)) as sink:
            print(f"a sink that takes {rate:g} messages/s at {best} connections", flush=True)
            connections, most = fixed(sink.port, best, rate)
            mine = adaptive(sink.port, directory / "e", rate, options.seconds)
            print(
                f"  engine: {mine:,.0f}/s; best fixed: {most:,.0f}/s at {connections}; "
                f"of what the sink takes at most: {mine / rate:.2f}"
            )
            aim(f"adaptive concurrency, best at {best} connections, times the best fixed", AIM, mine / most)


if __name__ == "__main__":
    main()
