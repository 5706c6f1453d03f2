"""The door of the command line: which command, which options, which exit status, in which words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from broker.contract.messages import TOPICS as DECLARED
from ctl.commands.events import TOPICS
from ctl.main import COMMANDS, cli, run

HEAVY = {"numpy", "pydantic", "asyncio", "sqlalchemy", "rich", "psutil", "tomllib"}

NEED_AN_ENGINE = [
    ["stop"], ["status"], ["stats"], ["send", "none.toml"], ["import", "members", "none.csv"], ["list"],
    ["list", "show", "members"], ["list", "unsubscribe", "members", "a@b.example"], ["suppress", "add", "a@b.example"],
    ["suppress", "remove", "a@b.example"], ["suppress", "list"], ["suppress", "import", "none.csv"],
    ["campaign", "create", "none.toml"], ["campaign", "list"], ["campaign", "show", "1"],
    ["campaign", "check", "none.toml"], ["campaign", "launch", "1"], ["campaign", "pause", "1"],
    ["campaign", "resume", "1"], ["campaign", "cancel", "1"], ["campaign", "wait", "news"], ["relay", "list"],
    ["relay", "check"], ["config", "show"], ["events"], ["events", "--follow", "campaign"],
]  # fmt: skip

Printed = pytest.CaptureFixture[str]


def _commands() -> list[tuple[str, click.Command]]:
    """Every command with its whole name, groups too."""
    found: list[tuple[str, click.Command]] = []
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        found.append((name, command))
        if isinstance(command, click.Group):
            found += [(f"{name} {verb}", command.commands[verb]) for verb in command.commands]
    return found


@pytest.mark.parametrize(("name", "command"), _commands())
def test_every_command_has_help_and_the_common_options(name: str, command: click.Command, capsys: Printed) -> None:
    """`--help` works, says what the command is for, and lists --state, --config and --json."""
    assert run([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert command.help
    assert command.help.partition("  ")[0].split(".")[0].split(":")[0][:30] in shown
    for option in ("--state", "--config", "--json"):
        assert option in shown


@pytest.mark.parametrize("arguments", NEED_AN_ENGINE, ids=" ".join)
def test_without_an_engine_the_status_is_3(arguments: list[str], tmp_path: Path, capsys: Printed) -> None:
    """The error names the state directory and `ctl start`, before anything else that may be wrong."""
    assert run([*arguments, "--state", str(tmp_path)]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"error: no engine runs on this state directory: {tmp_path}\nhint: `ctl start` starts one\n"


@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_common_options_stand_anywhere(place: str, tmp_path: Path, capsys: Printed) -> None:
    """Before the command, between noun and verb, after it."""
    given = ["--state", str(tmp_path), "--json"]
    arguments = {
        "before": [*given, "campaign", "list"],
        "between": ["campaign", *given, "list"],
        "after": ["campaign", "list", *given],
    }
    assert run(arguments[place]) == 3
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "no_engine"
    assert str(tmp_path) in error["message"]
    assert set(error) == {"code", "message", "file", "line", "column", "field", "count", "hint", "exit"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["stat"], "error: no such command: `stat`\nhint: did you mean `stats`?\n"),
        (["zzz"], "error: no such command: `zzz`\nhint: `ctl --help` shows how\n"),
        (["campaign", "shwo", "1"], "error: no such command: `shwo`\nhint: did you mean `show`?\n"),
        (["send"], "error: missing argument: `CAMPAIGN.toml`\nhint: `ctl send --help` shows how\n"),
        (["sink", "--prt", "1"], "error: no such option: `--prt`\nhint: did you mean `--port`?\n"),
        (
            ["sink", "--port", "x"],
            "error: Invalid value for '--port': 'x' is not a valid integer range\nhint: `ctl sink --help` shows how\n",
        ),
        (["stats", "more"], "error: Got unexpected extra argument (more)\nhint: `ctl stats --help` shows how\n"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(arguments: list[str], text: str, capsys: Printed) -> None:
    """Exit status 2, the nearest name as a hint where there is one, nothing on stdout."""
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", text)


def test_a_wrong_command_line_is_json_where_json_was_asked(capsys: Printed) -> None:
    """Even if the command line could not be read to its end."""
    assert run(["send", "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert json.loads(printed.err)["error"]["exit"] == 2


def test_ctl_alone_shows_its_commands(capsys: Printed) -> None:
    """On stderr, with exit status 2: it did nothing."""
    assert run([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert all(name in printed.err for name in COMMANDS)


def test_the_version_is_told(capsys: Printed) -> None:
    """`ctl --version`."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ctl 0.")


def test_a_topic_that_is_none_is_refused(tmp_path: Path, capsys: Printed) -> None:
    """A misspelt topic would be waited for in vain."""
    assert run(["events", "--follow", "campain", "--state", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no such topic: `campain`\nhint: topics: engine, actor")


def test_the_topics_are_those_of_the_engine() -> None:
    """This side may not import the engine's own list."""
    assert list(TOPICS) == list(DECLARED)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_no_command_is_heavy_to_load(name: str) -> None:
    """Neither finding the commands nor loading one loads numpy, pydantic, asyncio, SQLAlchemy or rich."""
    code = f"import sys; from ctl.main import run; run([{name!r}, '--help']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY - {"tomllib"} & set(loaded)
    if name in ("status", "stats"):
        assert not HEAVY & set(loaded)


def test_interrupting_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    """Ctrl-C is neither a traceback nor a success."""
    from ctl.commands import status

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "Client", interrupted)
    assert run(["status"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"
