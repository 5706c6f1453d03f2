"""`ctl sink`: an SMTP server for rehearsals, which takes mail and delivers none."""

import click

from ctl.modules import become
from ctl.options import common, options

__all__ = ["command"]

_SHARE = click.FloatRange(0, 1)


@click.command("sink", help="Run an SMTP server that takes mail and delivers none, until interrupted.")
@common
@click.option("--port", type=click.IntRange(0, 65535), default=2525, show_default=True, help="0 = any free one")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on")
@click.option("--latency", type=click.FloatRange(0, 3_600_000), metavar="MS", help="answer each group so much later")
@click.option("--defer", type=_SHARE, metavar="P", help="share of recipients deferred at their first attempt")
@click.option("--bounce", type=_SHARE, metavar="P", help="share of recipients refused for good")
@click.option("--seed", type=int, metavar="N", help="another seed, other recipients are deferred and refused")
@click.option("--keep", metavar="DIR", help="append what is accepted to DIR/messages.ndjson")
@click.option("--keep-first", type=click.IntRange(0), metavar="N", help="keep the first N messages only")
@click.option("--max-messages", type=click.IntRange(1), metavar="N", help="end after N messages")
@click.option("--no-pipelining", is_flag=True, help="do not announce PIPELINING")
def command(no_pipelining: bool, **values: object) -> None:
    """Become the sink."""
    arguments = [
        part
        for name, value in values.items()
        if value is not None
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    arguments += ["--no-pipelining"] * no_pipelining + ["--json"] * options().json
    become("actors.sink.actor", arguments)
