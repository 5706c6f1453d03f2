"""Writes the part of docs/cli.md that the code knows: every command with its arguments and options.

    python -m ctl.reference --check docs/cli.md     exit 1 if the page is not as the code has it
    python -m ctl.reference --write docs/cli.md     bring the page up to date

The prose around it is written by hand; the part stands between `<!-- begin commands -->` and `<!-- end commands -->`.
It says what `--help` says, in the same words, for it reads the same declarations. Loads every command; opens no engine.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from ctl.main import cli

__all__ = ["COMMON", "commands", "main", "written"]

COMMON = ("--state", "--config", "--json", "--help", "--version")
"""Options that stand once on the page, by hand, since every command takes them (`--version`: `ctl` itself)."""

_PART = re.compile(r"<!-- begin commands -->\n.*?<!-- end commands -->", re.DOTALL)


def commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command with its full name and a context of it, in the order of `--help`; a noun before its verbs."""
    yield from _below(cli, click.Context(cli, info_name="ctl"))


def _below(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, "a group has what it lists"
        own = click.Context(command, info_name=name, parent=context)
        yield own.command_path, command, own
        if isinstance(command, click.Group):
            yield from _below(command, own)


def written(page: str) -> str:
    """The page with every command as the code has it now. Raises ValueError if it has no place for them."""
    if len(_PART.findall(page)) != 1:
        raise ValueError("the page needs one `<!-- begin commands -->` ... `<!-- end commands -->`")
    overview = ["| command | |", "|---|---|"]
    sections = []
    for name, command, context in commands():
        if not isinstance(command, click.Group) or command.invoke_without_command:
            overview.append(f"| [`{name}`](#{name.replace(' ', '-')}) | {_cell(command.help or '')} |")
            sections.append(_section(name, command, context))
    part = "\n".join([*overview, "", *sections])
    return _PART.sub(lambda _match: f"<!-- begin commands -->\n{part}<!-- end commands -->", page)


def _section(name: str, command: click.Command, context: click.Context) -> str:
    usage = " ".join(piece for piece in command.collect_usage_pieces(context) if not piece.startswith("COMMAND"))
    lines = [f"### {name}", "", f"    {name} {usage}", "", command.help or "", ""]
    rows = [_row(option, context) for option in command.get_params(context) if _own(option)]
    if rows:
        lines += ["| option | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _own(parameter: click.Parameter) -> bool:
    if not isinstance(parameter, click.Option):
        return False
    return parameter.expose_value or not set(COMMON) & set(parameter.opts)  # `campaign retry` has its own --state


def _row(option: click.Parameter, context: click.Context) -> str:
    record = option.get_help_record(context)
    assert record is not None, "no option of ours is hidden"
    names, text = record
    return f"| `{names}` | {_cell(text)} |"


def _cell(text: str) -> str:
    """A text in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    """Check or write the page. Returns the exit status: 1 if `--check` found it stale."""
    parser = argparse.ArgumentParser(prog="python -m ctl.reference", description="Fill docs/cli.md from the commands")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--check", action="store_true", help="exit 1 if the page is not as the code has it")
    chosen.add_argument("--write", action="store_true", help="bring the page up to date")
    parser.add_argument("page", type=Path)
    options = parser.parse_args()
    there = options.page.read_text(encoding="utf-8")
    wanted = written(there)
    if options.write:
        options.page.write_text(wanted, encoding="utf-8")
    elif there != wanted:
        sys.stderr.write(f"{options.page} is stale; run: python -m ctl.reference --write {options.page}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
