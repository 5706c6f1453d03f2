"""`ctl start`: bring the engine up, detached, and return when it is ready."""

import contextlib
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

import click

from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from ctl import output
from ctl.modules import become, program
from ctl.options import common, options

__all__ = ["command"]

READY_S = 60.0  # a cold disk and a machine at its limit; a warm machine takes under one


@click.command("start", help="Start the engine and return when it is ready.")
@common
@click.option("--foreground", is_flag=True, help="stay in the foreground; the log goes to stderr")
def command(foreground: bool) -> None:
    """Start the engine."""
    chosen = options()
    state, config = chosen.state_dir, chosen.config_path
    arguments = ["--state", str(state.root), *(["--config", str(config)] if config is not None else [])]
    if foreground:
        become("broker", arguments)
    ready = start_detached(state, program("broker", arguments))
    settings = ready["settings"] or "built in (no relay)"
    if chosen.json:
        output.document({"pid": ready["pid"], "id": ready["id"], "state_dir": str(state.root), "settings": settings})
        return
    output.say(f"engine ready: pid {ready['pid']}, state {state.root}, settings {settings}")


def start_detached(state: StateDir, arguments: list[str]) -> dict[str, Any]:
    """Start an engine in a session of its own, with none of our descriptors, and wait for its word.

    Raises the EcmError that kept it from starting; start_failed if it ended without one.
    """
    fresh = not state.root.exists()
    log = _open_log(state)
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            [*arguments, "--ready-fd", str(write_end)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(write_end,), start_new_session=True, cwd="/",
        )  # fmt: skip
    finally:
        os.close(log)
        os.close(write_end)
    try:
        line = _first_line(read_end, time.monotonic() + READY_S)
    except KeyboardInterrupt:
        process.terminate()  # an engine that nobody waited for is not wanted
        process.wait()
        raise
    finally:
        os.close(read_end)
    if not line:
        raise _silent(state, process)
    told: dict[str, Any] = json.loads(line)
    if "error" in told:
        process.wait()
        error = EcmError.from_map(told["error"])
        if fresh and error.exit == 2:  # settings that are wrong; where the world is, the log says more
            _undo(state)
        raise error
    ready: dict[str, Any] = told["ready"]
    return ready


def _undo(state: StateDir) -> None:
    """Remove the directory that was made for the log of an engine which refused to start.

    An engine that got as far as putting something there keeps its log: it says what went wrong.
    """
    with contextlib.suppress(OSError):
        if list(state.root.iterdir()) != [state.log.parent]:
            return
        state.log.unlink()
        state.log.parent.rmdir()
        state.root.rmdir()


def _silent(state: StateDir, process: subprocess.Popen[bytes]) -> EcmError:
    """Why an engine said nothing: it ended, or it is still at it."""
    try:
        status = process.wait(1.0)  # it closes its end of the pipe a moment before it ends
    except subprocess.TimeoutExpired:
        hint = "`ctl status` says when it is ready, its log what it does"
        return EcmError(
            "timed_out",
            f"the engine (pid {process.pid}) gave no word in {READY_S:.0f} s",
            file=str(state.log),
            hint=hint,
        )
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return EcmError("start_failed", f"the engine {how}", file=str(state.log), hint="its log says why")


def _open_log(state: StateDir) -> int:
    path: Path = state.log
    try:
        state.root.mkdir(mode=0o710, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EcmError(
            "state_unwritable",
            f"the state directory cannot be written: {error.strerror}",
            file=str(error.filename or state.root),
            hint="give this user the directory, or name another with --state",
        ) from error


def _first_line(descriptor: int, deadline: float) -> bytes:
    """What the engine says, until it closes its end or the time is over."""
    text = b""
    while not text.endswith(b"\n") and (left := deadline - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            break
        part = os.read(descriptor, 65536)
        if not part:
            break
        text += part
    return text
