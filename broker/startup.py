"""The order in which an engine comes up and goes down.

Up: settings, lock, orphans, arena, actors (their imports run while the store opens), store, recovery, sockets, ready.
Down: drain, sockets, store, arena, files of the run, lock. Every step of the way up can be repeated after a crash
at any point; nothing is cleaned up by hand.
"""

import asyncio
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvloop
from setproctitle import setproctitle

from broker.arena_tables import Tables, arena_name, make_tables
from broker.contract.errors import EcmError
from broker.contract.log import log, open_log
from broker.contract.machine import Machine, probe, raise_fd_limit
from broker.contract.paths import StateDir
from broker.contract.settings import Settings, load_settings
from broker.contract.sockets import check_lengths
from broker.locks import BrokerLock
from broker.privileges import drop
from broker.process import stop_resource_tracker
from broker.recovery import end_orphans
from shm.arena import Arena
from shm.files.durable import replace_file

__all__ = ["serve"]

Report = Callable[[dict[str, Any]], None]


def serve(root: Path, config: Path | None, report: Report) -> None:
    """Be the engine of `root` until it is stopped. `report` is told once that it is ready.

    Raises EcmError for anything that keeps it from starting, or that stopped it.
    """
    _on_signals(_stopped_early)
    open_log("broker")
    setproctitle("email-campaign: broker")
    settings = load_settings(config)
    state = StateDir(root)
    check_lengths(state)
    _make_directories(state)
    lock = BrokerLock(state)
    try:
        end_orphans(state)
        raise_fd_limit()
        machine = probe(state.root)
        drop(settings.engine.user, state.root)
        start_id = secrets.token_hex(6)
        tables: Tables | None = None
        try:
            tables = make_tables(state, machine, len(settings.relays), start_id, _wall_ns(state), time.monotonic_ns())
            _note_start(state, start_id)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_live(state, settings, machine, tables, start_id, report))
        finally:
            _on_signals(signal.SIG_IGN)  # it is ending, and what it cleans up must be clean
            _clean(state, start_id, tables)
    finally:
        lock.close()


def _on_signals(handler: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, handler)


def _stopped_early(_number: int, _frame: FrameType | None) -> NoReturn:
    """Until the loop takes signals: go down the way that any failure of a start goes, so that nothing is left."""
    raise EcmError("stopping", "the engine was stopped before it was ready")


async def _live(
    state: StateDir, settings: Settings, machine: Machine, tables: Tables, start_id: str, report: Report
) -> None:
    from broker.engine import Engine

    engine = Engine(state, settings, machine, tables, _instance(state), start_id)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: engine.request_stop(now=engine.stopping))
    # From a terminal it says that the terminal has gone; to a service it means what it means to every service.
    hang_up = partial(engine.request_stop, now=False) if _on_terminal() else engine.request_reload
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    try:
        engine.spawn()
        await engine.start()
        log.info(
            "engine ready", start=start_id, senders=engine.sender_count,
            seconds=round(time.monotonic() - engine.started_mono, 3), settings=str(settings.source or "built in"),
        )  # fmt: skip
        report({"pid": os.getpid(), "id": start_id, "settings": str(settings.source) if settings.source else None})
        await engine.run()
    finally:
        await engine.close()


def _on_terminal() -> bool:
    return any(os.isatty(descriptor) for descriptor in (0, 2))


def _make_directories(state: StateDir) -> None:
    private = (state.log.parent, state.campaigns, state.trace, state.lists_jobs, state.windows("any").parent)
    for directory, mode in ((state.root, 0o710), (state.run, 0o710), *((path, 0o700) for path in private)):
        try:
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as error:
            raise EcmError(
                "state_unwritable",
                f"the state directory cannot be made: {error.strerror}",
                file=str(directory),
                hint="give this user the directory, or name another with --state",
            ) from error


def _instance(state: StateDir) -> str:
    """The id of this state directory: made once, it stands in every file's header."""
    try:
        return state.instance.read_text().strip()
    except FileNotFoundError:
        instance = secrets.token_hex(16)
        replace_file(state.instance, [f"{instance}\n".encode()])  # durably: no file of ours is of use without it
        return instance


def _wall_ns(state: StateDir) -> int:
    """Engine time at start: the wall clock, but never before the last time kept."""
    try:
        kept = int.from_bytes(state.clock.read_bytes()[:8], "little")
    except FileNotFoundError:
        kept = 0
    return max(time.time_ns(), kept)


def _note_start(state: StateDir, start_id: str) -> None:
    import json

    text = json.dumps({"pid": os.getpid(), "started": time.time(), "start_id": start_id})
    state.started.write_text(text)
    state.started.chmod(0o640)  # who may use the socket may know whether anybody listens


def _clean(state: StateDir, start_id: str, tables: Tables | None) -> None:
    """Remove what this start made. Without tables it was broken off while they were made."""
    if tables is not None:
        tables.suppressed.close()
        tables.arena.close()
    Arena.unlink(arena_name(start_id))
    for path in state.run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    stop_resource_tracker()
