"""`ctl`: the command line. Finds the command, loads it alone, and turns errors into exit statuses once.

Exit statuses: 0 done, 1 the world is wrong, 2 what the user wrote is wrong, 3 no engine, 4 timed out.
`--state`, `--config` and `--json` are taken before or after the command.
"""

import importlib
import os
import sys
from dataclasses import dataclass, field
from typing import Any

import click

from broker.contract.errors import EcmError
from broker.contract.paths import StateDir, which_config, which_state

__all__ = ["COMMANDS", "Options", "cli", "common", "main", "options"]

COMMANDS = {
    "init": "write what a newcomer starts from",
    "start": "start the engine and return when it is ready",
    "stop": "stop it; what is in flight is finished first",
    "status": "health of the engine, in a word and by exit status",
    "stats": "what is going on, in numbers",
    "send": "send a campaign file and wait for its account",
    "campaign": "create, list, show, check, launch, pause, resume, cancel, wait for, verify and export campaigns",
    "import": "import recipients into a list that is kept",
    "list": "lists that are kept",
    "suppress": "who must not be mailed",
    "relay": "list and check relays",
    "doctor": "what this machine has, and the share the engine may use",
    "config": "the settings in force",
    "events": "follow what happens",
    "sink": "an SMTP server for rehearsals",
}


@dataclass(slots=True)
class Options:
    """What every command may be told."""

    state: str | None = None
    config: str | None = None
    json: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def state_dir(self) -> StateDir:
        """The state directory meant."""
        return StateDir(which_state(self.state))

    @property
    def config_path(self) -> Any:
        """The settings file meant; None = built in."""
        return which_config(self.config)


class Lazy(click.Group):
    """A group whose commands are modules of `ctl/commands`, loaded when named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order of the list above."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        name = f"{cmd_name}_" if cmd_name in ("import", "list") else cmd_name
        command: click.Command = importlib.import_module(f"ctl.commands.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        """The list of commands, without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if value is not None and value is not False:
        setattr(ctx.ensure_object(Options), str(parameter.name), value)
    return value


def common(command: Any) -> Any:
    """The options that every command takes."""
    for decorate in (
        click.option("--state", metavar="DIR", expose_value=False, callback=_remember, help="the state directory"),
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


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@common
@click.version_option("0.1.0", prog_name="ctl")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Email Campaign Manager: send newsletters and notices through your own relays."""
    ctx.ensure_object(Options)


def main() -> None:
    """The entry point. Exits with the status of the command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit status."""
    from ctl import output

    chosen = Options()
    try:
        result = cli.main(arguments, prog_name="ctl", standalone_mode=False, obj=chosen)
    except EcmError as error:
        output.fail(error, as_json=chosen.json)
        return error.exit
    except click.exceptions.NoArgsIsHelpError as error:
        output.say(error.ctx.get_help() if error.ctx else "")
        return 2
    except click.ClickException as error:
        output.fail(_usage(error), as_json=chosen.json or "--json" in arguments)
        return 2
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        output.say("interrupted")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: no traceback at exit either
        return 0
    return result if isinstance(result, int) else 0


def _usage(error: click.ClickException) -> EcmError:
    context = getattr(error, "ctx", None)
    hint = f"`{context.command_path} --help` shows how" if context else None
    return EcmError("invalid_value", error.format_message().rstrip("."), hint=hint)


if __name__ == "__main__":
    main()
