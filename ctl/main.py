"""`ctl`: the command line. Finds the command, loads it alone, and turns errors into exit statuses once.

Exit statuses: 0 done, 1 the world is wrong, 2 what the user wrote is wrong, 3 no engine, 4 timed out; 130 interrupted.
"""

import importlib
import sys
from collections.abc import Iterable

import click

from broker.contract.errors import EcmError
from ctl import output
from ctl.options import Options, common

__all__ = ["COMMANDS", "cli", "main", "run"]

COMMANDS = {
    "init": "write what a newcomer starts from",
    "start": "start the engine and return when it is ready",
    "stop": "stop it; what is in flight is finished first",
    "reload": "read the settings file again",
    "status": "health of the engine, in a word and by exit status",
    "stats": "what is going on, in numbers",
    "send": "send a campaign file and wait for its account",
    "campaign": "create, check, launch, list, show, pause, resume, cancel, retry, explain, verify, export campaigns",
    "import": "import recipients into a list that is kept",
    "list": "lists that are kept",
    "suppress": "who must not be mailed",
    "relay": "list and check relays",
    "doctor": "what this machine has, and the share the engine may use",
    "config": "the settings in force",
    "events": "follow what happens",
    "explain": "what a reply of a relay means, and which rule says so",
    "sink": "an SMTP server for rehearsals: takes mail, delivers none",
}

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Lazy(click.Group):
    """A group whose commands are modules of `ctl/commands`, loaded when named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order of the list above."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        name = f"{cmd_name}_" if cmd_name in ("import", "list") else cmd_name  # a keyword, and a builtin
        command: click.Command = importlib.import_module(f"ctl.commands.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        """The list of commands, without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@common
@click.version_option("0.1.0", prog_name="ctl", message="%(prog)s %(version)s")
def cli() -> None:
    """Email Campaign Manager: send newsletters and notices through your own relays."""


def main() -> None:
    """The entry point. Exits with the status of the command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit status."""
    output.prepare()
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
    except OSError as error:  # where the output goes; what commands open themselves, they speak of themselves
        output.discard()
        output.fail(EcmError("io_failed", f"cannot write the output: {error.strerror}"), as_json=chosen.json)
        return 1
    except (click.Abort, KeyboardInterrupt):
        output.say("interrupted")
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _usage(error: click.ClickException) -> EcmError:
    """What click found wrong with the command line, in our words."""
    context = getattr(error, "ctx", None)
    hint = f"`{context.command_path} --help` shows how" if context else None
    message = error.format_message().rstrip(".")
    match error:
        case click.NoSuchOption():
            message = f"no such option: `{error.option_name}`"
            hint = _meant(error.option_name, error.possibilities or ()) or hint
        case click.exceptions.NoSuchCommand() if context and isinstance(context.command, click.Group):
            message = f"no such command: `{error.command_name}`"
            hint = _meant(error.command_name, context.command.list_commands(context)) or hint
        case click.MissingParameter() if error.param is not None:
            option, context = isinstance(error.param, click.Option), error.ctx or context
            name = error.param.opts[0] if option or context is None else error.param.make_metavar(context)
            message = f"missing {error.param.param_type_name}: `{name}`"
    return EcmError("invalid_value", message, hint=hint)


def _meant(given: str, known: Iterable[str]) -> str | None:
    from difflib import get_close_matches

    near = get_close_matches(given, known, 1)
    return f"did you mean `{near[0]}`?" if near else None


if __name__ == "__main__":
    main()
