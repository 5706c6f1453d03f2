"""`ctl relay`: the relays, and whether they can be spoken with."""

from typing import Any

import click

from broker.contract.errors import EcmError
from broker.contract.place import place
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
        [[r["name"], place(r["host"], r["port"]), r["tls"], r.get("state"), r.get("mode"),
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
        _show(found["relays"])
    failures = [EcmError.from_map(one["error"]) for one in found["relays"] if not one["ok"]]
    if not failures:
        return
    if not chosen.json:
        for error in failures[:-1]:
            output.fail(error, as_json=False)
    raise failures[-1 if not chosen.json else 0]


def _show(relays: list[dict[str, Any]]) -> None:
    """A table for each relay, those that cannot be used as well."""
    if not relays:
        output.say("no relay is declared in the settings")
    for number, one in enumerate(relays):
        if number:
            output.line()
        output.pairs([("relay", one["name"]), *(_offers(one) if one["ok"] else _fails(one))])


def _fails(one: dict[str, Any]) -> list[tuple[str, Any]]:
    server = [("server", place(one["host"], one["port"]))] if "host" in one else []
    return [*server, ("usable", "no"), ("reason", one["error"]["message"])]


def _offers(one: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        ("server", place(one["host"], one["port"])),
        ("usable", "yes"),
        ("banner", one["banner"]),
        ("tls", one["tls"] or "not encrypted"),
        *([("certificate", _certificate(one["certificate"]))] if one["certificate"] else []),
        ("extensions", _extensions(one["features"])),
        ("login", one["login"].upper() if one["login"] else "none"),
        ("mode", one["mode"]),
        ("window", one["window"]),
        ("round trip", "unknown" if one["round_trip_ms"] is None else f"{one['round_trip_ms']:.2f} ms"),
        ("open", f"{one['open_ms']:.1f} ms"),
    ]


def _certificate(found: dict[str, Any]) -> str:
    until = f", valid until {found['valid_until'][:10]}" if found["valid_until"] else ""
    if found["verified"]:
        return f"verified{until}"
    return f"not asked for ({found['problem'] or 'it would pass'}){until}"


_EXTENSIONS = {
    "pipelining": "PIPELINING", "chunking": "CHUNKING", "eightbitmime": "8BITMIME", "smtputf8": "SMTPUTF8",
    "enhanced": "ENHANCEDSTATUSCODES", "starttls": "STARTTLS",
}  # fmt: skip


def _extensions(features: dict[str, Any]) -> str:
    names = [name for key, name in _EXTENSIONS.items() if features[key]]
    if features["size"] is not None:
        names.append(f"SIZE {_bytes(features['size'])}")
    if features["auth"]:
        names.append(" ".join(["AUTH", *(mechanism.upper() for mechanism in features["auth"])]))
    return ", ".join(names) or "none"


def _bytes(size: int) -> str:
    """A size as mail people say it: 10,240,000 -> 10.2 MB; 0 is no limit (RFC 1870)."""
    if size == 0:
        return "without limit"
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}".replace(".0 ", " ")
    return f"{size} bytes"
