"""`ctl sink`: an SMTP server for rehearsals, which takes mail and delivers none."""

from collections.abc import Callable
from typing import Any

import click

from ctl.modules import become
from ctl.options import common, options

__all__ = ["command"]

_SHARE = click.FloatRange(0, 1)
_MS = click.FloatRange(0, 3_600_000)
_COUNT = click.IntRange(1)

# What `actors.sink.options` takes, in the same order; it is what refuses a combination that makes no sense.
_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--port", {"type": click.IntRange(0, 65535), "default": 2525, "show_default": True, "help": "0 = any free one"}),
    ("--host", {"default": "127.0.0.1", "show_default": True, "help": "address to listen on"}),
    ("--keep", {"metavar": "DIR", "help": "append what is accepted to DIR/messages.ndjson"}),
    ("--keep-first", {"type": click.IntRange(0), "metavar": "N", "help": "keep the first N messages only"}),
    ("--max-messages", {"type": _COUNT, "metavar": "N", "help": "end after N messages"}),
    ("--latency", {"type": _MS, "metavar": "MS", "help": "answer each group so much later"}),
    ("--jitter", {"type": _MS, "metavar": "MS", "help": "and up to so much more"}),
    ("--rate", {"type": click.FloatRange(0.001), "metavar": "R", "help": "take R messages a second in all"}),
    ("--best-connections", {"type": _COUNT, "metavar": "N", "help": "R at N connections, fewer at more (20)"}),
    ("--seed", {"type": int, "metavar": "N", "help": "another seed, other recipients meet a fate"}),
    ("--defer", {"type": _SHARE, "metavar": "P", "help": "share of recipients deferred at their first attempt"}),
    ("--bounce", {"type": _SHARE, "metavar": "P", "help": "share of recipients refused for good"}),
    ("--throttle", {"type": _SHARE, "metavar": "P", "help": "share whose first attempt gets a 421 and a close"}),
    ("--drop", {"type": _SHARE, "metavar": "P", "help": "share whose first attempt breaks the connection"}),
    ("--greylist", {"type": click.FloatRange(0, 86_400), "metavar": "S", "help": "defer everybody for S seconds"}),
    ("--close-after", {"type": _COUNT, "metavar": "N", "help": "close silently after N messages on a connection"}),
    ("--max-connections", {"type": _COUNT, "metavar": "N", "help": "answer 421 to more connections"}),
    ("--size", {"type": _COUNT, "metavar": "BYTES", "help": "most bytes of a message, announced as SIZE"}),
    ("--no-pipelining", {"is_flag": True, "help": "do not announce PIPELINING"}),
    ("--no-chunking", {"is_flag": True, "help": "do not announce CHUNKING, nor take it"}),
    ("--no-8bitmime", {"is_flag": True, "help": "do not announce 8BITMIME, nor take it"}),
    ("--no-smtputf8", {"is_flag": True, "help": "do not announce SMTPUTF8, nor take it"}),
    ("--tls", {"type": click.Choice(["none", "starttls", "implicit"]), "help": "encryption offered; none if not said"}),
    ("--cert", {"metavar": "FILE", "help": "certificate chain (PEM); if not given, one is made for localhost"}),
    ("--key", {"metavar": "FILE", "help": "its private key (PEM)"}),
    ("--user", {"metavar": "NAME", "help": "nobody else may send, and after AUTH PLAIN or LOGIN only"}),
    ("--password-file", {"metavar": "FILE", "help": "the user's password: the first line of a file"}),
)  # fmt: skip


def _sink_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, settings in reversed(_OPTIONS):
        command = click.option(name, **settings)(command)
    return command


@click.command("sink", help="Run an SMTP server that takes mail and delivers none, until interrupted.")
@common
@_sink_options
def command(**values: object) -> None:
    """Become the sink."""
    arguments: list[str] = []
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            arguments.append(option)
        elif value is not None and value is not False:
            arguments += [option, str(value)]
    become("actors.sink.actor", arguments + ["--json"] * options().json)
