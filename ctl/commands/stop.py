"""`ctl stop`: end the engine, and return when no process of it is left."""

import contextlib
import time
from pathlib import Path

import click

from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from ctl import output
from ctl.client import Client
from ctl.options import common, options

__all__ = ["command"]

STOP_S = 60.0


@click.command("stop", help="Stop the engine; what is in flight is finished first.")
@common
@click.option("--now", is_flag=True, help="do not wait for what is in flight")
def command(now: bool) -> None:
    """Stop the engine."""
    chosen = options()
    state = chosen.state_dir
    began = time.monotonic()
    pids = stop_engine(state, now=now)
    seconds = round(time.monotonic() - began, 3)
    if chosen.json:
        output.document({"stopped": True, "seconds": seconds, "processes": pids})
    else:
        output.say(f"engine stopped in {seconds:.1f} s")


def stop_engine(state: StateDir, *, now: bool) -> int:
    """Ask an engine to stop and wait until no process of it is left. Returns how many there were."""
    with Client(state) as client:
        processes = [(int(pid), int(start)) for pid, start in client.request("engine.stop", {"now": now})["processes"]]
    deadline = time.monotonic() + STOP_S
    while left := [pid for pid, start in processes if _alive(pid, start)]:
        if time.monotonic() > deadline:
            raise EcmError("timed_out", f"processes of the engine are still there: {', '.join(map(str, left))}")
        time.sleep(0.01)
    return len(processes)


def _alive(pid: int, start: int) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return state[0] != b"Z" and int(state[19]) == start
    return False
