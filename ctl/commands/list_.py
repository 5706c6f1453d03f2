"""`ctl list`: the lists that are kept, and leaving one."""

from typing import Any

import click

from ctl import output
from ctl.client import LONG_S, Client, idempotency_key
from ctl.options import Noun, common, options

__all__ = ["command"]


@click.group("list", cls=Noun, help="Lists that are kept; without a command, all of them.", invoke_without_command=True)
@common
@click.pass_context
def command(context: click.Context) -> None:
    """The noun; alone it lists."""
    if context.invoked_subcommand is not None:
        return
    chosen = options()
    with Client(chosen.state_dir) as client:
        found = client.request("audience.lists")
    if chosen.json:
        output.document(found)
        return
    if not found["lists"]:
        output.say("no list is kept yet; `ctl import LIST FILE` makes one")
        return
    columns = [name for name in found["lists"][0] if name not in ("fields", "id")]
    numbers = [name for name in columns if isinstance(found["lists"][0][name], int)]
    output.table(columns, [[one[name] for name in columns] for one in found["lists"]], right=numbers)


@command.command("show", help="One list.")
@common
@click.argument("list_name", metavar="LIST")
def show(list_name: str) -> None:
    """Its numbers and fields."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        found = client.request("audience.show", {"list": list_name})
    if chosen.json:
        output.document(found)
        return
    output.pairs({name: _text(value) for name, value in found.items()})


def _text(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


@command.command("unsubscribe", help="Take somebody off a list; an import cannot undo it.")
@common
@click.argument("list_name", metavar="LIST")
@click.argument("address")
def unsubscribe(list_name: str, address: str) -> None:
    """Take somebody off a list."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        args = {"list": list_name, "address": address}
        found = client.request("audience.unsubscribe", args, key=idempotency_key(), within_s=LONG_S)
    if chosen.json:
        output.document(found)
        return
    what = "is off list" if found["changed"] else "was off already:"
    output.say(f"{found['address']} {what} {found['list']}")
