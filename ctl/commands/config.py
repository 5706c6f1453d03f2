"""`ctl config show`: the settings in force, without secrets."""

import json
from collections.abc import Iterator
from typing import Any

import click

from ctl import output
from ctl.client import Client
from ctl.options import Noun, common, options

__all__ = ["command"]

# How the settings name what ecm.toml calls otherwise; "" = a level, or a value, that is not in it.
KEYS = {"relays": "relay", "pools": "pool", "classes": "", "timeouts_s": "timeouts", "name": ""}


@click.group("config", cls=Noun, help="The settings in force.")
@common
def command() -> None:
    """The noun."""


@command.command("show", help="The settings the engine runs with, secrets left out.")
@common
def show() -> None:
    """One line for each key, as TOML."""
    chosen = options()
    with Client(chosen.state_dir) as client:
        settings = client.request("engine.config")
    if chosen.json:
        output.document(settings)
        return
    output.say(f"settings: {settings.pop('source', None) or 'built in (no relay)'}")
    for key, value in _flat(settings):
        output.line(f"{key} = {_toml(value)}")


def _flat(table: dict[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key, as ecm.toml names it; what is not set is left out."""
    for key, value in table.items():
        name = KEYS.get(key, key)
        if isinstance(value, dict):
            yield from _flat(value, f"{at}{name}." if name else at)
        elif value is not None and name:
            yield f"{at}{name}", value


def _toml(value: Any) -> str:
    """A value as TOML writes it; for what settings hold, that is JSON."""
    return json.dumps(value, ensure_ascii=False)
