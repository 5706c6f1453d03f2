"""Programs of the house that `ctl` runs as they are: it imports nothing of theirs."""

import os
import sys
from collections.abc import Iterable
from typing import NoReturn

__all__ = ["become", "program"]


def program(module: str, arguments: Iterable[str] = ()) -> list[str]:
    """The command line of a module. -P: a directory `broker` where one happens to stand is not taken for ours."""
    return [sys.executable, "-P", "-m", module, *arguments]


def become(module: str, arguments: Iterable[str]) -> NoReturn:
    """Go on as that program: its output, signals and exit status are ours."""
    sys.stdout.flush()
    sys.stderr.flush()
    command = program(module, arguments)
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted
