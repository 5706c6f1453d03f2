"""Starting, asking and stopping a real engine by the real command line: texts and exit statuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fixtures.ctl import environment, run_ctl
from tests.fixtures.until import until

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.engine import StartEngine
    from tests.fixtures.sink import StartSink

pytest_plugins = ["tests.fixtures.engine", "tests.fixtures.sink"]

HEAVY = {"numpy", "pydantic", "asyncio", "sqlalchemy", "rich", "psutil"}


def test_an_engine_starts_answers_and_stops(engine: StartEngine, sink: StartSink) -> None:
    """start, status, stats, stop: exit status 0, data on stdout, talk on stderr, nothing left."""
    running = engine(relay=sink().port, start=False)
    started = running.start()
    assert started.stdout == ""
    ready = rf"engine ready: pid (\d+), state {running.state.root}, settings {running.directory}/ecm.toml\n"
    match = re.fullmatch(ready, started.stderr)
    assert match
    assert int(match[1]) == running.pid
    status = running.ctl("status").ok()
    assert re.fullmatch(rf"ok: version \S+, \d+ senders, up [\d,]+ s, state {running.state.root}\n", status.stdout)
    stats = running.ctl("stats", "--json").ok()
    assert stats.stderr == ""
    _assert_stats(stats.json(), running.pid)
    assert running.ctl("stats").ok().stdout.startswith("engine ")
    stopped = running.stop()
    assert (stopped.stdout, bool(re.fullmatch(r"engine stopped in \d+\.\d s\n", stopped.stderr))) == ("", True)
    assert running.ctl("status").status == 3


def _assert_stats(stats: dict[str, Any], pid: int | None) -> None:
    """The document of the contract: every key, no other kinds and states."""
    assert set(stats) >= {
        "v", "time", "engine", "actors", "totals", "per_second", "campaigns", "relays", "resources", "latency_ms",
    }  # fmt: skip
    assert stats["engine"]["health"] in ("ok", "degraded")
    assert stats["actors"][0]["kind"] == "broker"
    assert stats["actors"][0]["pid"] == pid
    assert {actor["kind"] for actor in stats["actors"]} == {"broker", "sender", "loader", "monitor"}
    assert [relay["name"] for relay in stats["relays"]] == ["default"]
    for name in ("cpu", "memory", "fds", "processes", "disk", "network"):
        assert set(stats["resources"][name]) == {"used", "limit", "budget"}


def test_a_second_start_is_refused(engine: StartEngine) -> None:
    """Exit status 1, naming the pid of the engine that runs; that engine is unharmed. Settings are built in."""
    running = engine()
    again = running.ctl("start")
    assert again.status == 1
    assert again.stdout == ""
    assert str(running.pid) in again.stderr
    assert again.stderr.startswith("error: ")
    assert running.ctl("start", "--json").error()["code"] == "already_running"
    shown = json.loads(running.ctl("config", "show", "--json").ok().stdout)
    assert shown["relays"] == {}


def test_wrong_settings_stop_a_start_with_their_place(engine: StartEngine) -> None:
    """Exit status 2; nothing runs afterwards."""
    running = engine(relay=25, start=False, conections="3")
    refused = running.ctl("start")
    assert refused.status == 2
    assert refused.stderr == (
        "error: ecm.toml:5:1: unknown key: `relay.default.conections`\nhint: did you mean `connections`?\n"
    )
    assert running.pid is None
    missing = running.ctl("start", "--config", "none.toml")
    assert missing.status == 2
    assert missing.stderr.startswith("error: none.toml: the settings: no such file")


def test_a_state_directory_with_a_long_path_is_refused(tmp_path: Path) -> None:
    """Exit status 1, with both lengths: sockets would not fit."""
    long = tmp_path / ("x" * 90)
    refused = run_ctl("start", "--state", str(long), cwd=tmp_path)
    assert refused.status == 1
    assert re.match(r"error: socket paths would have \d+ bytes, the system allows 107: ", refused.stderr)


def test_a_state_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Exit status 1, naming it."""
    (tmp_path / "file").write_text("")
    refused = run_ctl("start", "--state", "file/var", cwd=tmp_path)
    assert refused.status == 1
    assert refused.stderr.startswith("error: file/var: the state directory cannot be written: Not a directory")


def test_an_engine_in_the_foreground_ends_with_a_signal(engine: StartEngine) -> None:
    """`start --foreground` is the engine itself: SIGTERM drains it, and its exit status is 0."""
    running = engine(start=False)
    process = running.begin("start", "--foreground")
    until(lambda: running.ctl("status").status == 0)
    assert running.pid == process.pid
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "engine ready" in log
    running.assert_nothing_left()


def test_after_a_kill_the_engine_is_missed_and_can_be_started_again(engine: StartEngine) -> None:
    """Exit status 3 at once; the next start cleans up and takes over."""
    running = engine()
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    gone = until(lambda: (found := running.ctl("status")).status == 3 and found)
    assert "`ctl start` starts one" in gone.stderr
    running.start()
    running.ctl("status").ok()


def test_an_interrupted_start_leaves_nothing(engine: StartEngine) -> None:
    """Ctrl-C while the engine comes up: exit status 130, and no engine."""
    running = engine(start=False)
    starting = running.begin("start")
    until(running.state.broker_lock.exists)
    starting.send_signal(signal.SIGINT)
    _, stderr = starting.communicate(timeout=40)
    assert starting.returncode == 130
    assert stderr.split() == ["interrupted"]
    assert running.ctl("status").status == 3
    assert list(running.state.run.iterdir()) == []
    running.assert_nothing_left()


def test_the_quick_path_loads_nothing_heavy(engine: StartEngine) -> None:
    """`ctl stats` and `ctl status`, answered by an engine, load no numpy, pydantic, asyncio, SQLAlchemy or rich."""
    running = engine()
    for words in (["stats"], ["stats", "--json"], ["status"]):
        code = f"import sys; from ctl.main import run; run({words!r}); print(*sys.modules, file=sys.stderr)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=running.directory, env=environment(), capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        loaded = set(done.stderr.split())
        assert "zmq" in loaded
        assert not HEAVY & loaded


def test_doctor_tells_the_machine_with_and_without_an_engine(engine: StartEngine) -> None:
    """The share of the settings stands in the heading; JSON has the numbers."""
    running = engine(settings="[budget]\nshare = 0.5\n", relay=25, start=False)
    before = running.ctl("doctor").ok().stdout
    assert "budget (50%)" in before
    assert "does not run" in before
    running.start()
    found = running.ctl("doctor", "--json").ok().json()
    assert (found["share"], found["engine"]["pid"]) == (0.5, running.pid)
    cpu = next(row for row in found["rows"] if row["name"] == "cpu")
    assert cpu["raw"]["budget"] == cpu["raw"]["limit"] * 0.5
    assert f"runs, pid {running.pid}" in running.ctl("doctor").ok().stdout
