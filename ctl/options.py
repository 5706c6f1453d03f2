"""What every command may be told: which engine, which settings, and how to answer.

`--state`, `--config` and `--json` are taken before or after the command, and between a noun and its verb. Loads click
and the standard library only: every command passes through here.
"""

from pathlib import Path
from typing import Any

import click

from broker.contract.paths import StateDir, which_config, which_state

__all__ = ["Noun", "Options", "common", "options"]


class Options:
    """The common options of one command line, as given.

    state, config   paths, None = not given;  json  answer in JSON
    """

    __slots__ = ("config", "json", "state")

    def __init__(self) -> None:
        self.state: str | None = None
        self.config: str | None = None
        self.json = False

    @property
    def state_dir(self) -> StateDir:
        """The state directory meant."""
        return StateDir(which_state(self.state))

    @property
    def config_path(self) -> Path | None:
        """The settings file meant; None = built in."""
        return which_config(self.config)

    def command(self, words: str) -> str:
        """A command line to suggest, for the same engine as this one."""
        from shlex import quote

        return f"ctl --state {quote(self.state)} {words}" if self.state else f"ctl {words}"


class Noun(click.Group):
    """A group that lists its commands in the order in which they are written."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names, in order."""
        return list(self.commands)


def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if value is not None and value is not False:
        setattr(ctx.ensure_object(Options), str(parameter.name), value)
    return value


def common(command: Any) -> Any:
    """The options that every command takes."""
    command = common_but_state(command)
    return click.option("--state", metavar="DIR", expose_value=False, callback=_remember, help="the state directory")(
        command
    )


def common_but_state(command: Any) -> Any:
    """The same for a command with a `--state` of its own."""
    for decorate in (
        click.option("--config", metavar="FILE", expose_value=False, callback=_remember, help="the settings file"),
        click.option("--json", is_flag=True, expose_value=False, callback=_remember, help="JSON on stdout"),
    ):
        command = decorate(command)
    return command


def options() -> Options:
    """The options of the command being run."""
    found = click.get_current_context().find_object(Options)
    assert found is not None, "every command is run through `main`"
    return found
