"""How many sockets this process may still open: never beyond nine tenths of its limit, whatever else it has open.

One for all pools of a process (`PROCESS`), since the limit is the process's.
"""

from __future__ import annotations

import os
import resource
from typing import Final

__all__ = ["PROCESS", "Descriptors"]

SHARE: Final = 0.9
COUNT_EVERY: Final = 64  # sockets opened or closed between two counts of what is really open


class Descriptors:
    """The account of one process's file descriptors.

    sockets  connections open or being opened, as the pools say with `take` and `give_back`
    """

    def __init__(self, limit: int | None = None) -> None:
        """limit: of the process; None = ask the kernel (it may be raised while we run)."""
        self._limit = limit
        self.sockets = 0
        self._others = 0
        self._moves = COUNT_EVERY

    def room(self) -> int:
        """How many more connections may be opened now."""
        if self._moves >= COUNT_EVERY:
            self._moves = 0
            self._others = max(len(os.listdir("/proc/self/fd")) - self.sockets, 0)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if self._limit is None else self._limit
        if limit == resource.RLIM_INFINITY:
            return 1 << 30
        return max(int(SHARE * limit) - self._others - self.sockets, 0)

    def take(self) -> None:
        """A connection is about to be opened."""
        self.sockets += 1
        self._moves += 1

    def give_back(self) -> None:
        """A connection is closed, or was not opened after all."""
        self.sockets -= 1
        self._moves += 1


PROCESS: Final = Descriptors()
