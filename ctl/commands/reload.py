"""`ctl reload`: have the engine read its settings file again."""

import click

from ctl import output
from ctl.client import Client
from ctl.options import common, options

__all__ = ["command"]

DONE = ("added", "changed", "removed")


@click.command("reload", help="Read the settings file again: relays, pools, limits of relays and [retry] take effect.")
@common
def command() -> None:
    """Say what changed, and what needs a restart."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        found = client.request("instance.reload")
    if chosen.json:
        output.document(found)
        return
    done = [f"{word} {', '.join(found[word])}" for word in DONE if found[word]]
    output.say(f"reloaded: {'; '.join(done) or 'nothing has changed'}")
    if found["restart_needed"]:
        output.say(f"warning: needs a restart: {', '.join(found['restart_needed'])}")
