"""`python -m ctl.tied PID COMMAND...`: goes on as COMMAND, and ends with SIGTERM when its parent, process PID, ends.

For what a demo or a rehearsal starts: even where that is killed, nothing of it is left running.

Invariants
- COMMAND has this process's id, descriptors and signals; only Linux's parent-death signal (prctl(2)) is added.
- A parent that ended before the signal was asked for is noticed: nothing is started then.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterable

from ctl.modules import program

__all__ = ["main", "tied"]

_PR_SET_PDEATHSIG = 1


def tied(command: Iterable[str]) -> list[str]:
    """A command line that runs `command` as long as this process lives, at most."""
    return program("ctl.tied", (str(os.getpid()), *command))


def main() -> int:
    """Become the command. Returns only if the parent is gone."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:
        os.execv(command[0], command)  # noqa: S606 - no shell is wanted
    return 1


if __name__ == "__main__":
    sys.exit(main())
