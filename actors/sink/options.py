"""The options of the rehearsal server, and what they make: its manners, its policy and its record.

Invariants
- An option that makes no sense is refused before anything is opened (exit status 2), in one line and with a way out.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import NoReturn

from actors.sink.auth import Credentials
from actors.sink.held import Capacity, Delays
from actors.sink.manners import SIZE_MAX, Manners
from actors.sink.policy import Policy, Shares
from broker.contract.errors import EcmError

__all__ = ["manners", "parse", "policy"]

DAY_S = 86_400
COUNT_MAX = 1 << 40


def _number(text: str, least: float, most: float, needed: str) -> float:
    """A number in a range, whatever else float() takes for one. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:  # false of nan, too
        raise argparse.ArgumentTypeError(f"{needed} needed: {text}")
    return value


def _share(text: str) -> float:
    return _number(text, 0.0, 1.0, "a share between 0 and 1 is")


def _milliseconds(text: str) -> float:
    return _number(text, 0.0, 3_600_000.0, "milliseconds between 0 and an hour are")


def _seconds(text: str) -> float:
    return _number(text, 0.0, DAY_S, "seconds between 0 and a day are")


def _rate(text: str) -> float:
    return _number(text, 0.001, 10_000_000.0, "messages a second, more than 0, are")


def _whole(text: str, least: int, most: int, needed: str) -> int:
    """A whole number in a range. Raises ArgumentTypeError."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{needed} needed: {text}")
    return value


def _port(text: str) -> int:
    return _whole(text, 0, 65535, "a port between 0 and 65535 is")


def _count(text: str) -> int:
    return _whole(text, 1, COUNT_MAX, "a count from 1 is")


def _count_or_none(text: str) -> int:
    return _whole(text, 0, COUNT_MAX, "a count from 0 is")


def _seed(text: str) -> int:
    return _whole(text, -(1 << 63), (1 << 63) - 1, "a whole number of 64 bits is")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every command does: one line and a hint, no usage."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found."""
        raise _wrong(message.removeprefix("argument "))


def _wrong(message: str, hint: str = "`ctl sink --help` shows how") -> EcmError:
    return EcmError("invalid_value", message, hint=hint)


def _parser() -> argparse.ArgumentParser:
    options = _Parser(prog="ctl sink", description="An SMTP server that accepts mail and delivers nothing")
    add = options.add_argument
    add("--port", type=_port, default=2525, help="0 = any free port (default: 2525)")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--json", action="store_true", help="print JSON, one document a line")
    add("--keep", type=Path, metavar="DIR", help="append accepted messages to DIR/messages.ndjson")
    add("--keep-first", type=_count_or_none, metavar="N", help="keep the first N only; the rest is counted")
    add("--max-messages", type=_count, default=0, metavar="N", help="end after N messages")
    add("--latency", type=_milliseconds, default=0.0, metavar="MS", help="answer each group so much later")
    add("--jitter", type=_milliseconds, default=0.0, metavar="MS", help="and up to so much more")
    add("--rate", type=_rate, metavar="R", help="take so many messages a second in all")
    add("--best-connections", type=_count, metavar="N", help="that many at N connections, fewer at more (default: 20)")
    add("--seed", type=_seed, default=0, help="another seed, other recipients meet a fate")
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
    """Read the command line. Raises EcmError invalid_value if it makes no sense."""
    chosen = _parser().parse_args(argv)
    if chosen.defer + chosen.bounce + chosen.throttle + chosen.drop > 1:
        raise _wrong(
            "--defer, --bounce, --throttle and --drop are shares of the same recipients: together at most 1",
            "make them smaller, so that their sum is at most 1",
        )
    for one, other in (("cert", "key"), ("user", "password_file")):
        if (getattr(chosen, one) is None) != (getattr(chosen, other) is None):
            first, second = f"--{one}", f"--{other.replace('_', '-')}"
            missing = first if getattr(chosen, one) is None else second
            raise _wrong(f"{first} and {second} belong together", f"give {missing}, too")
    for one, other, needed in (("best_connections", "rate", "--rate R"), ("keep_first", "keep", "--keep DIR")):
        if getattr(chosen, one) is not None and getattr(chosen, other) is None:
            raise _wrong(f"--{one.replace('_', '-')} belongs to --{other}", f"give {needed}, too")
    if chosen.cert is not None and chosen.tls == "none":
        raise _wrong("--cert is for --tls starttls or implicit", "give --tls, or leave --cert and --key out")
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
