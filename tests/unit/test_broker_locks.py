"""The two locks of an instance (broker/locks.py), between real processes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from broker.locks import BrokerLock, actors_gone
from tests.fixtures.until import until

HOLD = (
    "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_SH); print(); input()"
)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """A state directory with a place for what tells of the running engine."""
    made = StateDir(tmp_path)
    made.run.mkdir()
    return made


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a shared lock on `path`, as actors do."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_second_broker_is_told_who_runs(state: StateDir) -> None:
    """With pid and age as the first one noted them; after its end the lock is free."""
    lock = BrokerLock(state)
    with pytest.raises(EcmError, match="pid unknown, starting") as caught:
        BrokerLock(state)
    assert caught.value.code == "already_running"
    state.started.write_text(f'{{"pid": 77, "started": {time.time() - 7300}, "start_id": "x"}}')
    with pytest.raises(EcmError, match="pid 77, started 2 h ago"):
        BrokerLock(state)
    lock.close()
    BrokerLock(state).close()


def test_no_child_inherits_a_lock(state: StateDir) -> None:
    """A process that outlives the broker does not hold its lock."""
    lock = BrokerLock(state)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as child:
        lock.close()
        until(lambda: _free(state))  # the kernel lets go of a descriptor a moment after the exec that closed it
        assert child.poll() is None, "the child lives, and does not hold it"
        child.kill()


def _free(state: StateDir) -> bool:
    try:
        BrokerLock(state).close()
    except EcmError:
        return False
    return True


def test_actors_are_gone_when_the_last_one_has_ended(state: StateDir) -> None:
    """While one lives the answer is no, however long it is waited for; its death frees the lock."""
    assert actors_gone(state, wait_s=0)
    with holder(state.actors_lock) as actor:
        assert not actors_gone(state, wait_s=0.05)
        actor.kill()
        assert actors_gone(state, wait_s=10)


def test_looking_does_not_keep_actors_out(state: StateDir) -> None:
    """The lock is let go of at once, so that new actors can have it."""
    assert actors_gone(state, wait_s=0)
    descriptor = os.open(state.actors_lock, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(descriptor)


def test_a_state_directory_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    """With the path of the lock."""
    with pytest.raises(EcmError) as caught:
        BrokerLock(StateDir(tmp_path / "missing"))
    assert caught.value.code == "state_unwritable"
