"""`ctl status`: health of the engine in a word, with its reasons. Exit 0 ok or draining, 1 degraded, 3 none."""

import click

from ctl import output
from ctl.client import Client
from ctl.options import common, options

__all__ = ["command"]


@click.command("status", help="Health of the engine: exit 0 ok or draining, 1 degraded, 3 no engine.")
@common
def command() -> int:
    """Health of the engine."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        status = client.request("engine.status")
    if chosen.json:
        output.document(status)
    else:
        engine = status["engine"]
        output.line(f"{engine['health']}: version {engine['version']}, {status['senders']} senders, "
                    f"up {status['uptime_s']:,.0f} s, state {engine['state_dir']}")  # fmt: skip
        for reason in status["reasons"]:
            output.line(f"  {reason}")
        for state, count in status["campaigns"].items():
            output.line(f"  {count} {state}")
    return 1 if status["engine"]["health"] == "degraded" else 0
