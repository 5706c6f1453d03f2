"""`ctl suppress`: addresses that nobody may mail."""

import click

from ctl import live, output
from ctl.client import LONG_S, Client, idempotency_key
from ctl.commands.import_ import absolute
from ctl.follow import end_of_job
from ctl.options import Noun, common, options

__all__ = ["command"]


@click.group("suppress", cls=Noun, help="Addresses that must not be mailed, running campaigns included.")
@common
def command() -> None:
    """The noun."""


@command.command("add", help="Mail these addresses no more; it holds within a second.")
@common
@click.argument("addresses", metavar="ADDRESS...", nargs=-1, required=True)
@click.option("--reason", default="manual", show_default=True, help="manual, unsubscribe, bounce, complaint or words")
def add(addresses: tuple[str, ...], reason: str) -> None:
    """Suppress."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        args = {"addresses": list(addresses), "reason": reason}
        found = client.request("suppress.add", args, key=idempotency_key(), within_s=LONG_S)
    output.document(found) if chosen.json else output.pairs(found)


@command.command("remove", help="Let these addresses be mailed again.")
@common
@click.argument("addresses", metavar="ADDRESS...", nargs=-1, required=True)
def remove(addresses: tuple[str, ...]) -> None:
    """Let them be mailed again."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        args = {"addresses": list(addresses)}
        found = client.request("suppress.remove", args, key=idempotency_key(), within_s=LONG_S)
    output.document(found) if chosen.json else output.pairs(found)


@command.command("list", help="Suppressed addresses, newest first.")
@common
@click.option("--prefix", default="", help="only addresses that begin so")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="at most so many")
def list_(prefix: str, limit: int) -> None:
    """The newest ones."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        found = client.request("suppress.list", {"prefix": prefix, "limit": limit})
    if chosen.json:
        output.document(found)
        return
    rows = found["suppressions"]
    output.table(
        ["address", "reason", "source", "created"],
        [[one["address"], one["reason"], one["source"], one["created"]] for one in rows],
    )
    output.say(f"{len(rows):,} of {found['total']:,}")


@command.command("import", help="Suppress all addresses of a file: one a line, or the first column of a CSV file.")
@common
@click.argument("file", metavar="FILE")
@click.option("--reason", default="manual", show_default=True, help="as in `suppress add`")
def import_(file: str, reason: str) -> None:
    """Import, and wait for the end of it."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        args = {"path": absolute(file), "reason": reason}
        job = client.request("suppress.import", args, key=idempotency_key())["job"]
        with live.view() as view:
            result = end_of_job(client, job, view)
    if chosen.json:
        output.document(result)
        return
    output.pairs({name: value for name, value in result.items() if value is not None})
