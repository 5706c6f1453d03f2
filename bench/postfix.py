"""A campaign into a real Postfix `smtpd`, beside `smtp-source -d` into the same one, in one run.

    python -m bench.postfix [--messages 20000] [--bytes 4096] [--rounds 3] [--connections 20]

A private Postfix with its queue in memory, which discards what it has queued. It announces CHUNKING and PIPELINING, so
the engine sends BDAT windows; smtp-source sends DATA. Postfix is the limit on both sides: the ratio says whether our
windows help it or stand in its way.
"""

from __future__ import annotations

from bench.figures import Rounds, aim, options_of
from bench.ours import Campaign, engine, relay
from bench.peers import need, place, postfix, source

AIM = 1.0


def main() -> None:
    """Measure and print."""
    options = options_of(__doc__, 20_000).parse_args()
    need("smtp-source", "postfix", root=True)
    rates = Rounds("messages a second")
    with (
        place() as directory,
        postfix() as peer,
        engine(directory, relay("default", peer.port, options.connections)) as ours,
    ):
        campaign = Campaign.make(directory, options.messages, options.bytes)
        size = campaign.message_bytes
        print(f"{options.messages:,} messages of {size:,} bytes, {options.connections} connections", flush=True)
        ours.send(Campaign.make(directory, min(options.messages, 2_000), options.bytes), "warm-up")
        for number in range(options.rounds):
            peer.until_empty()
            rates.add("engine", ours.send(campaign, f"round-{number}").rate)
            peer.until_empty()
            rates.add("smtp-source -d", source(peer.port, options.messages, size, options.connections).rate)
        modes = [entry["mode"] for entry in ours.stats()["relays"]]
    rates.show()
    ratio = rates.ratio("engine", "smtp-source -d")
    print(f"  the engine's mode: {', '.join(map(str, modes))}")
    aim("into a real Postfix, times smtp-source -d", AIM, ratio)


if __name__ == "__main__":
    main()
