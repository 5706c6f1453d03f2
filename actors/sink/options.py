"""The options of the rehearsal server, and what they make: its manners, its policy and its record.

Invariants
- An option that makes no sense is refused before anything is opened (exit status 2).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from actors.sink.auth import Credentials
from actors.sink.held import Capacity, Delays
from actors.sink.manners import SIZE_MAX, Manners
from actors.sink.policy import Policy, Shares

__all__ = ["manners", "parse", "policy"]

DAY_S = 86_400


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"a share between 0 and 1 is needed: {text}")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 3_600_000.0:
        raise argparse.ArgumentTypeError(f"milliseconds between 0 and an hour are needed: {text}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= DAY_S:
        raise argparse.ArgumentTypeError(f"seconds between 0 and a day are needed: {text}")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0.001 <= value <= 10_000_000:
        raise argparse.ArgumentTypeError(f"messages a second, more than 0, are needed: {text}")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"a port between 0 and 65535 is needed: {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1 << 40:
        raise argparse.ArgumentTypeError(f"a count from 1 is needed: {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="ctl sink", description="An SMTP server that accepts mail and delivers nothing"
    )
    add = options.add_argument
    add("--port", type=_port, default=2525, help="0 = any free port (default: 2525)")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--json", action="store_true", help="print JSON, one document a line")
    add("--keep", type=Path, metavar="DIR", help="append accepted messages to DIR/messages.ndjson")
    add("--keep-first", type=int, metavar="N", help="keep the first N only; the rest is counted")
    add("--max-messages", type=int, default=0, metavar="N", help="end after N messages")
    add("--latency", type=_positive, default=0.0, metavar="MS", help="answer each group so much later")
    add("--jitter", type=_positive, default=0.0, metavar="MS", help="and up to so much more")
    add("--rate", type=_rate, metavar="R", help="take so many messages a second in all")
    add("--best-connections", type=_count, metavar="N", help="that many at N connections, fewer at more (default: 20)")
    add("--seed", type=int, default=0, help="another seed, other recipients meet a fate")
    add("--defer", type=_share, default=0.0, metavar="P", help="share deferred at the first attempt")
    add("--bounce", type=_share, default=0.0, metavar="P", help="share refused for good")
    add("--throttle", type=_share, default=0.0, metavar="P", help="share answered with 421 at the first attempt")
    add("--drop", type=_share, default=0.0, metavar="P", help="share whose first attempt breaks the connection")
    add("--greylist", type=_seconds, default=0.0, metavar="S", help="defer everybody until S seconds after the first")
    add("--close-after", type=_count, metavar="N", help="close silently after N messages on a connection")
    add("--max-connections", type=_count, metavar="N", help="answer 421 to more connections")
    add("--size", type=_count, default=SIZE_MAX, metavar="BYTES", help="of a message, announced as SIZE")
    for keyword in ("pipelining", "chunking", "8bitmime", "smtputf8"):
        add(f"--no-{keyword}", action="store_true", help=f"do not announce {keyword.upper()}")
    add("--tls", choices=("none", "starttls", "implicit"), default="none", help="encryption offered (default: none)")
    add("--cert", type=Path, metavar="FILE", help="certificate chain, PEM; without it one is made for localhost")
    add("--key", type=Path, metavar="FILE", help="its private key, PEM")
    add("--user", metavar="NAME", help="only this user may send, after AUTH PLAIN or LOGIN")
    add("--password-file", type=Path, metavar="FILE", help="the user's password, the first line of a file")
    return options


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; exits with status 2 and the reason if it makes no sense."""
    options = _parser()
    chosen = options.parse_args(argv)
    if chosen.defer + chosen.bounce + chosen.throttle + chosen.drop > 1:
        options.error("--defer, --bounce, --throttle and --drop are shares of the same recipients: together at most 1")
    for one, other in (("cert", "key"), ("user", "password_file")):
        if (getattr(chosen, one) is None) != (getattr(chosen, other) is None):
            options.error(f"--{one} and --{other.replace('_', '-')} belong together")
    if chosen.cert is not None and chosen.tls == "none":
        options.error("--cert is for --tls starttls or implicit")
    if chosen.best_connections is not None and chosen.rate is None:
        options.error("--best-connections belongs to --rate")
    return chosen


def manners(chosen: argparse.Namespace) -> Manners:
    """Behaviour towards everybody, TLS apart. Raises OSError if the password cannot be read."""
    capacity = Capacity(chosen.rate, chosen.best_connections or 20) if chosen.rate is not None else None
    credentials = None
    if chosen.user is not None:
        lines = chosen.password_file.read_text(encoding="utf-8").splitlines()
        credentials = Credentials(chosen.user, lines[0] if lines else "")
    return Manners(
        size_max=chosen.size,
        pipelining=not chosen.no_pipelining,
        chunking=not chosen.no_chunking,
        eight_bit=not chosen.no_8bitmime,
        smtputf8=not chosen.no_smtputf8,
        delays=Delays(chosen.latency / 1000, chosen.jitter / 1000, capacity, chosen.seed),
        close_after=chosen.close_after or 0,
        sessions_max=chosen.max_connections or 0,
        credentials=credentials,
    )


def policy(chosen: argparse.Namespace) -> Policy:
    """Who is refused."""
    shares = Shares(bounce=chosen.bounce, defer=chosen.defer, throttle=chosen.throttle, drop=chosen.drop)
    return Policy(shares, chosen.seed, chosen.greylist, time.monotonic)
