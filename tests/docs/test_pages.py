"""The pages say what is there: commands, options, settings, log events, links."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

from broker.contract.campaign import Breaker, CampaignSpec
from broker.contract.limits import Rate
from broker.contract.problems import Table
from broker.contract.relay import Relay
from broker.contract.settings import RETRY_CLASSES, Budget, EngineSettings, LedgerSettings, Retry
from ctl.main import COMMANDS
from ctl.reference import COMMON, commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

# `ctl`, perhaps with options before the command, and what follows on the line or in the code span.
NAMED = re.compile(r"(?:^|[`;(&|]) *(?:\$ )?ctl((?: --[a-z]+ [^\s`]+)*) ([a-z]+)([^`\n#|>;&]*)", re.MULTILINE)
# Code alone: in prose, `ctl` is a word like any other.
CODE = re.compile(r"^```.*?^```|`[^`\n]+`|^    .+$", re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    """A page's path as tests show it."""
    return str(page.relative_to(ROOT))


@cache
def known() -> dict[str, click.Command]:
    """Every command by its words."""
    return {path.removeprefix("ctl "): command for path, command, _ in commands()}


def named(text: str) -> Iterator[tuple[str, str]]:
    """Commands a page names in code, each with the rest of its line."""
    for code in CODE.findall(text):
        for before, noun, rest in NAMED.findall(code):
            words = [noun, *rest.split()]
            command = known().get(noun)
            if isinstance(command, click.Group) and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
                yield f"{noun} {words[1]}", f"{before} {' '.join(words[2:])}"
            else:
                yield noun, f"{before} {rest}"


# A page that runs ahead of the program. Strict: whoever adds the command takes the mark away.
AHEAD: dict[str, str] = {}


def with_marks(page: Path) -> Any:
    """A page as a parameter, expected to fail if it runs ahead."""
    reason = AHEAD.get(name(page))
    return pytest.param(page, marks=[pytest.mark.xfail(reason=reason, strict=True)] if reason else [], id=name(page))


@pytest.mark.parametrize("page", [with_marks(page) for page in PAGES])
def test_pages_name_no_command_and_no_option_that_does_not_exist(page: Path) -> None:
    """What a page tells people to type, they can type."""
    wrong = []
    for words, rest in named(page.read_text(encoding="utf-8")):
        command = known().get(words)
        if command is None:
            wrong.append(f"ctl {words}")
            continue
        options = {*COMMON, *(o for p in command.params for o in (*p.opts, *p.secondary_opts))}
        wrong += [f"ctl {words} {option}" for option in re.findall(r"--[a-z][a-z-]+", rest) if option not in options]
    assert not wrong


def test_named_finds_commands_and_their_options() -> None:
    """The test above sees what it is meant to see."""
    text = "Try `ctl frobnicate --hard` and `ctl --state X campaign show 7`;\n\n    ctl stats --watch | head\n"
    assert [(words, rest.split()) for words, rest in named(text)] == [
        ("frobnicate", ["--hard"]),
        ("campaign show", ["--state", "X", "7"]),
        ("stats", ["--watch"]),
    ]


def test_every_command_and_option_stands_in_the_reference() -> None:
    """docs/cli.md has a section for each command, with each of its options."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### ctl ([^\n]+)\n(.*?)(?=^###? |\Z)", page, re.MULTILINE | re.DOTALL))
    for words, command in known().items():
        if isinstance(command, click.Group) and not command.invoke_without_command:
            continue
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for option in (*parameter.opts, *parameter.secondary_opts):
                    assert option in (page if option in COMMON else sections[words]), f"ctl {words} {option}"
            else:
                assert parameter.human_readable_name in sections[words], f"ctl {words}"
    assert {words.split()[0] for words in sections} == set(COMMANDS)


@pytest.mark.parametrize(
    "writer",
    [
        ["ctl.reference", "--check", "docs/cli.md"],
        ["broker.contract.protocol_page", "--check"],
        ["actors.smtp.pages", "--check", "docs/smtp.md"],
        ["actors.sink.pages", "--check", "docs/rehearsal.md"],
    ],
    ids=lambda writer: str(writer[0]),
)
def test_generated_parts_are_as_the_code_has_them(writer: list[str]) -> None:
    """`make docs` would change nothing."""
    done = subprocess.run([sys.executable, "-m", *writer], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link of a page names a file that is there, and a heading that is in it."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), link


SHOWN_AS = {"timeouts_s": "timeouts", "unsubscribe_mailto": "mailto", "unsubscribe_url": "url"}
INTERNAL = {"name", "password", "classes", "html_file", "text_file", "from_name", "from_address", "source"}


@pytest.mark.parametrize(
    "model",
    [Relay, Rate, Retry, Budget, LedgerSettings, EngineSettings, CampaignSpec, Breaker],
    ids=lambda model: str(model.__name__),
)
def test_every_setting_stands_in_operations(model: type[Table]) -> None:
    """A key of ecm.toml or of a campaign file has a row on the page for operators, a number its default."""
    rows = re.findall(r"^\| (.*?`.+?) \| (.*?) \|", OPERATIONS, re.MULTILINE)
    for key, field in model.model_fields.items():
        if key in INTERNAL:
            continue
        shown = SHOWN_AS.get(key, key)
        defaults = [default for keys, default in rows if re.search(rf"[` \[]{shown}[`\]]", keys)]
        assert defaults, key
        if model in (Relay, Retry, Budget, LedgerSettings) and isinstance(field.default, int | float) and key != "port":
            assert re.sub(r"^(0\.\d)$", r"\g<1>0", f"{field.default:g}") in defaults, f"{key}: {defaults}"


def test_every_retry_class_stands_in_operations() -> None:
    """Operators are told every class that may have times of its own."""
    assert all(f"`{reply_class}`" in OPERATIONS for reply_class in RETRY_CLASSES)


def events(level: str) -> set[str]:
    """Events of a level that the engine logs."""
    found: set[str] = set()
    for room in ("broker", "actors"):
        for source in (ROOT / room).rglob("*.py"):
            text = source.read_text(encoding="utf-8")
            found |= set(re.findall(rf'log\.{level}\(\s*"([^"]+)"', text))
    return found


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_log_table_has_the_events_that_exist(level: str) -> None:
    """Each event the engine logs is explained to operators under its level, and no other."""
    rows = re.findall(rf"^\| {level} \| (.+?) \|", OPERATIONS, re.MULTILINE)
    assert {event for row in rows for event in re.findall(r"`([^`]+)`", row)} == events(level)
