"""The examples of docs/protocol.md, run against a real engine by interpreters that know nothing of this house."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.instance import House, arrivals
from tests.fixtures.peers import need

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PROTOCOL = EXAMPLES.parent / "protocol.md"
PACKAGES = ("zeromq@6", "@msgpack/msgpack@3")


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """A directory with Node's packages, kept between runs; skips without npm, or where it cannot reach its registry."""
    need("nodejs", "node")
    need("npm", "npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = cache / "email-campaign-manager" / "node"
    if not (kept / "complete").exists():
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(kept), *PACKAGES]
        done = subprocess.run(command, cwd=kept, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode != 0:
            reason = f"npm cannot install {', '.join(PACKAGES)}: {done.stderr[-300:]}"
            pytest.fail(reason) if os.environ.get("ECM_CI") == "1" else pytest.skip(reason)
        (kept / "complete").touch()
    return kept


def run(*command: str, cwd: Path) -> str:
    """Stdout of a program that must succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def test_a_program_in_python_sends_a_campaign(house: House, tmp_path: Path) -> None:
    """Raw pyzmq and msgpack: send, follow, and read the account."""
    engine, relay = house
    people = engine.people("from-python", 50)
    said = run(sys.executable, str(EXAMPLES / "send.py"), str(engine.state.root), str(people), cwd=tmp_path)
    assert said == "50 of 50 sent\n"
    assert len(arrivals(relay, "from-python")) == 50


def test_a_program_in_node_sends_a_campaign(house: House, node_modules: Path) -> None:
    """The same with Node's `zeromq`: any language will do."""
    engine, relay = house
    people = engine.people("from-node", 50)
    program = shutil.copy(EXAMPLES / "send.mjs", node_modules)  # where it finds its packages
    said = run("node", str(program), str(engine.state.root), str(people), cwd=node_modules)
    assert said == "50 of 50 sent\n"
    assert len(arrivals(relay, "from-node")) == 50


def test_an_error_of_the_engine_reaches_a_foreign_program(house: House, tmp_path: Path) -> None:
    """A recipients file that is not there: the program says what the engine says."""
    engine, _ = house
    command = [sys.executable, str(EXAMPLES / "send.py"), str(engine.state.root), str(tmp_path / "nobody.csv")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "was finished on" in done.stderr or "no such file" in done.stderr


def test_the_page_names_every_example() -> None:
    """Whoever reads docs/protocol.md finds the programs."""
    page = PROTOCOL.read_text()
    assert [path.name for path in EXAMPLES.iterdir() if f"(examples/{path.name})" not in page] == []
