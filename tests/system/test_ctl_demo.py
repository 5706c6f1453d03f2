"""The demo: what it shows, and that nothing of it is left, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.ctl import ROOT, environment
from tests.fixtures.stage import SHARED_MEMORY, processes_of
from tests.fixtures.terminal import Terminal
from tests.fixtures.until import until


def begin(cwd: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ctl.demo"], cwd=cwd, env=environment() | variables, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def place_of(text: str) -> str:
    match = re.search(r"an engine in (/tmp/ecm-demo-\S+)", text)
    assert match, text
    return match[1]


def test_the_demo_shows_an_account_and_three_messages(tmp_path: Path) -> None:
    """10,000 sent, three messages decoded, the rate in words; it says that it lifts the limit; nothing is left.

    Whatever ECM_STATE and ECM_CONFIG say: they are somebody else's.
    """
    demo = begin(tmp_path, ECM_STATE=str(tmp_path / "mine"), ECM_CONFIG=str(tmp_path / "mine.toml"))
    stdout, stderr = demo.communicate(timeout=110)
    assert demo.returncode == 0, stderr
    lines = stdout.splitlines()
    assert "sent  10,000" in lines
    assert "state  finished" in lines
    assert "3 of the 10,000 messages the relay has accepted:" in lines
    subjects = [line for line in lines if line.startswith("  Subject: ")]
    assert len(subjects) == 3
    assert all(line.isprintable() and "=?" not in line for line in subjects)
    assert sum(line.startswith("  | Dear ") for line in lines) == 3
    assert re.fullmatch(r"10,000 personal messages in [\d.]+ seconds: [\d,]+ a second on .*", lines[-1])
    assert "it lifts the default limit of 100/s" in stderr
    place = place_of(stderr)
    assert not Path(place).exists()
    assert processes_of(place) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["an engine in", "engine ready", "is running: audience"])
def test_an_interrupted_demo_leaves_nothing(moment: str, number: signal.Signals, tmp_path: Path) -> None:
    """Before the engine, when it is up, in the middle of sending: exit status 130 and a clean machine."""
    demo = begin(tmp_path)
    assert demo.stderr is not None
    text = ""
    while moment not in text:
        line = demo.stderr.readline()
        assert line, text
        text += line
    started = Path(place_of(text)) / "var" / "run" / "arena"
    segment = started.read_text().strip().lstrip("/") if started.exists() else None
    demo.send_signal(number)
    _, rest = demo.communicate(timeout=60)
    assert demo.returncode == 130, text + rest
    place = place_of(text)
    assert not Path(place).exists()
    until(lambda: processes_of(place) == [], within_s=5)
    assert segment is None or not list(SHARED_MEMORY.glob(f"{segment}*"))


def test_a_demo_that_fails_says_why_and_cleans_up(tmp_path: Path) -> None:
    """Exit status 1, the end of the engine's log if there is one; nothing is left."""
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "import sys\nif 'send' in sys.orig_argv:\n    sys.stderr.write('error: made to fail\\n')\n    sys.exit(1)\n"
    )
    demo = begin(tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    _, stderr = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "error: the demo failed: `ctl send` ended with status 1\n" in stderr
    assert "engine ready" in stderr.split("the end of ")[1]
    assert not Path(place_of(stderr)).exists()


def test_the_demo_draws_a_bar_on_a_terminal(tmp_path: Path) -> None:
    """A person sees it move."""
    terminal = Terminal("ctl.demo", [], tmp_path)
    assert terminal.end() == 0
    assert re.search(r"first-news  running  sent [\d,]+ of 10,000", terminal.text)
    assert "nothing of it is left" in terminal.text
