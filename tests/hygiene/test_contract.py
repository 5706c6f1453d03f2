"""Tables and what uses them: every operation has its handler, command and page, every error code is used and known."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from broker.contract.errors import CODES
from broker.contract.messages import OPERATIONS
from broker.control.router import HANDLERS
from ctl.main import COMMANDS
from tests.fixtures.sources import CODE, ROOT, calls, paths, tree

WITHOUT_COMMAND: dict[str, str] = {}
"""Operations that no command uses, and why."""

HEAVY = {"numpy", "pydantic", "asyncio", "sqlalchemy", "rich", "psutil", "uvloop", "email", "http", "urllib.request"}


def strings(*rooms: str) -> set[str]:
    """Every string constant of these rooms."""
    return {
        node.value
        for path in paths(*rooms)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_operation_has_a_handler() -> None:
    """What can be asked is answered, and nothing is answered that cannot be asked."""
    assert set(HANDLERS) == set(OPERATIONS)


def test_every_operation_has_a_command_or_a_reason() -> None:
    """What a program can do a person can, or it is said why not."""
    missing = set(OPERATIONS) - strings("ctl")
    assert missing == set(WITHOUT_COMMAND)


def test_every_operation_and_command_has_its_page() -> None:
    """docs/protocol.md describes each operation, docs/cli.md each command."""
    protocol, cli = ((ROOT / "docs" / name).read_text() for name in ("protocol.md", "cli.md"))
    assert [name for name in OPERATIONS if f"\n### {name}\n" not in protocol] == []
    assert [name for name in COMMANDS if f"ctl {name}" not in cli] == []


def test_every_error_code_used_exists() -> None:
    """EcmError refuses a code at run time; here it is found before."""
    used = {
        f"{path.relative_to(ROOT)}:{call.lineno}": call.args[0].value
        for path in paths(*CODE)
        for call in calls(path, "EcmError")
        if call.args and isinstance(call.args[0], ast.Constant)
    }
    assert used
    assert {place: code for place, code in used.items() if code not in CODES} == {}


def test_every_error_code_is_used() -> None:
    """The list is closed, and nothing on it is dead."""
    where = [path for path in paths(*CODE) if path != ROOT / "broker" / "contract" / "errors.py"]
    spoken = {
        node.value
        for path in where
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert [code for code in CODES if code not in spoken] == []


@pytest.mark.parametrize("command", ["stats", "status", "stop"])
def test_a_quick_command_imports_little(command: str) -> None:
    """`ctl stats` answers in a tenth of a second: what it loads must not grow."""
    code = f"import sys, ctl.main, ctl.commands.{command}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()
