"""`ctl relay`: the relays, and whether they can be spoken with."""

from typing import Any

import click

from broker.contract.errors import EcmError
from ctl import output
from ctl.client import LONG_S, Client
from ctl.options import Noun, common, options

__all__ = ["command"]


@click.group("relay", cls=Noun, help="The relays declared in the settings.")
@common
def command() -> None:
    """The noun."""


@command.command("list", help="The relays: settings and state.")
@common
def list_() -> None:
    """A line for each relay, then the pools."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        found = client.request("relay.list")
    if chosen.json:
        output.document(found)
        return
    output.table(
        ["relay", "server", "tls", "state", "mode", "connections", "limit", "reason"],
        [[r["name"], f"{r['host']}:{r['port']}", r["tls"], r.get("state"), r.get("mode"),
          f"{r.get('connections', 0)}/{r.get('connections_limit', '-')}", _limits(r["rate"]), r.get("reason")]
         for r in found["relays"]],
    )  # fmt: skip
    if found.get("pools"):
        output.line()
        rows = [
            [name, ", ".join(f"{relay} {weight}" for relay, weight in members.items())]
            for name, members in found["pools"].items()
        ]
        output.table(["pool", "relays and weights"], rows)


def _limits(rate: dict[str, Any]) -> str | None:
    return ", ".join(f"{name} {output.number(value)}" for name, value in rate.items() if value) or None


@command.command("check", help="Connect to a relay (or all), greet, secure, log in. No mail is sent.")
@common
@click.argument("relay", metavar="[RELAY]", required=False)
def check(relay: str | None) -> None:
    """What each relay offers, or why it cannot be spoken with."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        found = client.request("relay.check", {"relay": relay} if relay else {}, within_s=LONG_S)
    if chosen.json:
        output.document(found)
    else:
        for one in found["relays"]:
            output.line(f"{one['name']}  {_finding(one)}")
        if not found["relays"]:
            output.say("no relay is declared in the settings")
    for one in found["relays"]:
        if not one["ok"]:
            raise EcmError.from_map(one["error"])


def _finding(one: dict[str, Any]) -> str:
    if not one["ok"]:
        return f"failed: {one['error']['message']}"
    logged_in = "  logged in" if one.get("logged_in") else ""
    return (
        f"ok  {one['host']}:{one['port']}  {one['tls'] or 'not encrypted'}  {one['mode']}{logged_in}"
        f"  {output.number(one['open_ms'])} ms  {one['banner']}"
    )
