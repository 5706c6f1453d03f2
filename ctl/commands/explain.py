"""`ctl explain`: which rule a reply of a relay meets, and what that means for the recipient. Needs no engine."""

import click

from ctl.modules import become
from ctl.options import common, options

__all__ = ["command"]


@click.command("explain", help="What a relay's reply means to us, and which rule says so.")
@common
@click.argument("reply", nargs=-1, required=True, metavar="REPLY...")
def command(reply: tuple[str, ...]) -> None:
    """Become the explanation."""
    become("actors.smtp.explain", [*["--json"] * options().json, "--", *reply])
