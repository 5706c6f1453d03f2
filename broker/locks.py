"""The two locks of an instance: who may decide, and who may still be alive.

`broker.lock` is held exclusively by the one broker of a state directory. `actors.lock` is held shared by every
actor for life; a starting broker takes it alone once, which proves that no actor of an earlier broker is left.
Both are `flock`s: the kernel frees them when their holder dies, however it dies, so neither can be left behind.
Both descriptors are close-on-exec (Python's default), so no child inherits a lock.

Invariants
- Nothing under STATE is written, no socket is bound and no shared memory is made without `broker.lock`.
- Nothing is granted before `actors.lock` was held alone.
"""

import fcntl
import json
import os
import time
from pathlib import Path

from broker.contract.errors import EcmError
from broker.contract.paths import StateDir

__all__ = ["BrokerLock", "actors_gone"]


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EcmError(
            "state_unwritable",
            f"the state directory cannot be written: {error.strerror}",
            file=str(path),
            hint="give this user the directory, or name another with --state",
        ) from error


class BrokerLock:
    """The right to be the broker of a state directory, held until the process ends.

    Raises EcmError already_running (with pid and age) while another broker holds it, state_unwritable if the lock
    file cannot be opened.
    """

    def __init__(self, state: StateDir) -> None:
        self._fd = _open(state.broker_lock)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise _already_running(state) from None

    def close(self) -> None:
        """Give the lock up; the last thing a broker does."""
        os.close(self._fd)


def _already_running(state: StateDir) -> EcmError:
    pid, age = "unknown", ""
    try:
        started = json.loads(state.started.read_text())
        pid = str(started["pid"])
        age = f", started {_age(time.time() - float(started['started']))} ago"
    except (OSError, ValueError, KeyError, TypeError):
        age = ", starting"
    return EcmError(
        "already_running",
        f"an engine already runs on this state directory: pid {pid}{age}",
        file=str(state.root),
        hint="follow it with `ctl status`, end it with `ctl stop`",
    )


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def actors_gone(state: StateDir, *, wait_s: float) -> bool:
    """Whether `actors.lock` could be held alone within `wait_s`: true only if no actor of an earlier broker lives."""
    fd = _open(state.actors_lock)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.01)
    finally:
        os.close(fd)
