"""Requests about the engine as a whole."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Final

import psutil

from broker.contract.boot import process_starttime
from broker.contract.messages import Nothing, Stop
from broker.control.seam import Engine, Handler

__all__ = ["HANDLERS"]


async def engine_status(engine: Engine, _args: Nothing) -> dict[str, Any]:
    """Health with its reasons."""
    return engine.status_map()


async def engine_stats(engine: Engine, _args: Nothing) -> dict[str, Any]:
    """Everything."""
    return await engine.stats_map()


async def engine_stop(engine: Engine, args: Stop) -> dict[str, Any]:
    """Begin to stop. Names every process that will end, so that the client can see the last of them go."""
    processes = await asyncio.to_thread(_processes)
    engine.request_stop(now=args.now)
    return {"stopping": True, "processes": processes}


async def engine_config(engine: Engine, _args: Nothing) -> dict[str, Any]:
    """The settings in force."""
    return engine.settings.to_public_map()


async def instance_reload(engine: Engine, _args: Nothing) -> dict[str, Any]:
    """Read the settings file again."""
    return await engine.reload.run()


async def events_snapshot(engine: Engine, _args: Nothing) -> dict[str, Any]:
    """Numbers first, then the state: an event in between is in both, never in neither."""
    topics = engine.events.numbers()
    return {"start": engine.events.start_id, "topics": topics, "stats": await engine.stats_map()}


def _processes() -> list[list[int]]:
    """[pid, start time] of this process and all that descend from it, multiprocessing's resource tracker included."""
    own = os.getpid()
    pids = [own, *(child.pid for child in psutil.Process(own).children(recursive=True))]
    return [[pid, process_starttime(pid)] for pid in pids]


HANDLERS: Final[dict[str, Handler]] = {
    "engine.status": engine_status,
    "engine.stats": engine_stats,
    "engine.stop": engine_stop,
    "engine.config": engine_config,
    "instance.reload": instance_reload,
    "events.snapshot": events_snapshot,
}
