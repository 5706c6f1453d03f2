"""Births and deaths of actor processes: the mechanism. Whether one should exist is `supervisor`'s to say.

Actors are spawned, never forked, as the broker's own children, so that `waitpid` proves a death. They are started by
module name: the broker imports none of them.
"""

import importlib
import multiprocessing
import multiprocessing.process
import os
import signal
from multiprocessing import resource_tracker

from broker.contract.boot import Boot

__all__ = ["Child", "stop_resource_tracker", "tracker_pid"]

_MODULES = {
    "sender": "actors.sender.actor",
    "loader": "actors.loader.actor",
    "monitor": "actors.monitor.actor",
}
_SPAWN = multiprocessing.get_context("spawn")


def _enter(module: str, boot: Boot) -> None:
    """The first thing that runs in a new actor process."""
    importlib.import_module(module).main(boot)


class Child:
    """One actor process, from its start to the proof of its death."""

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self.process: multiprocessing.process.BaseProcess = _SPAWN.Process(
            target=_enter, args=(_MODULES[boot.kind], boot), name=f"{boot.kind} {boot.index}"
        )
        self.process.start()
        assert self.process.pid is not None
        self.pid: int = self.process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it lives; the exit status, or minus the signal that ended it (waitpid's word)."""
        return self.process.exitcode

    def signal(self, number: int) -> None:
        """Send a signal; a process that has just ended is no error."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def ask_for_stack(self) -> None:
        """SIGABRT: faulthandler writes the stack of every thread to the log, then the process ends."""
        self.signal(signal.SIGABRT)

    def kill(self) -> None:
        """SIGKILL, which ends a stopped process too."""
        self.signal(signal.SIGKILL)

    def close(self) -> None:
        """Free what the parent keeps of a process that has ended."""
        self.process.join()
        self.process.close()


def tracker_pid() -> int | None:
    """Pid of multiprocessing's resource tracker, which belongs to the instance like any actor."""
    return getattr(resource_tracker._resource_tracker, "_pid", None)  # noqa: SLF001 - there is no public name for it


def stop_resource_tracker() -> None:
    """End multiprocessing's resource tracker and wait for it, so that a stop leaves no process behind."""
    stop = getattr(resource_tracker._resource_tracker, "_stop", None)  # noqa: SLF001 - as above
    if stop is not None:
        stop()
