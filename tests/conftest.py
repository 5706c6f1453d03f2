"""Fixtures that system tests share, and what must be true once all tests have run: nothing of ours is left.

Every process that a test starts inherits a mark in its environment. At the end no process with the mark of this run
may live, hence no socket of ours be bound, and no shared memory that came meanwhile may be there without a user.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from pathlib import Path

import psutil
import pytest

from broker.process import stop_resource_tracker
from shm.segment import DIRECTORY, names

pytest_plugins = [
    "tests.fixtures.sink",
    "tests.fixtures.postfix",
    "tests.fixtures.smtp_sink",
    "tests.fixtures.engine",
    "tests.fixtures.instance",
    "tests.fixtures.sabotage",
    "tests.fixtures.small_disk",
    "tests.fixtures.moody_relay",
]

MARK = "EMAIL_CAMPAIGN_TEST_SESSION"
GONE_S = 10.0  # what was just killed may take a moment on a busy machine

_ARENA = re.compile(r"ecm-[0-9a-f]{12}(\.s\d+)?")

_before: set[str] = set()


def pytest_sessionstart() -> None:
    """Mark what is started from here on. SPT_NOENV: a process that sets its title keeps its environment readable."""
    os.environ[MARK] = secrets.token_hex(8)
    os.environ["SPT_NOENV"] = "1"
    _before.update(_arenas())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session, naming what is left."""
    stop_resource_tracker()  # ours: some tests start actors themselves
    deadline = time.monotonic() + GONE_S
    while left := [*_processes(), *_segments()]:
        if time.monotonic() > deadline:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            reporter = session.config.pluginmanager.get_plugin("terminalreporter")
            if reporter is not None:
                reporter.write_line(f"left by the tests: {', '.join(left)}", red=True)
            return
        time.sleep(0.05)


def _processes() -> list[str]:
    mark = f"{MARK}={os.environ[MARK]}\0".encode()
    left = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and mark in Path(f"/proc/{process.pid}/environ").read_bytes():
                left.append(f"process {process.pid} ({' '.join(process.cmdline())})")
        except (OSError, psutil.NoSuchProcess):
            continue  # it ended, or is another user's
    return left


def _segments() -> list[str]:
    """Segments that came during the session and that nobody has mapped: another engine's, which runs, are not ours."""
    new = _arenas() - _before
    return [f"shared memory {name}" for name in sorted(new - _mapped())] if new else []


def _arenas() -> set[str]:
    return {name for name in names("ecm-") if _ARENA.fullmatch(name)}


def _mapped() -> set[str]:
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text().splitlines()
        except OSError:
            continue
        mapped |= {line.rpartition("/")[2].split()[0] for line in lines if f"{DIRECTORY}/ecm-" in line}
    return mapped
