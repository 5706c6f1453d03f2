"""A timer as fine as the kernel's, for pacing: uvloop's own timers are whole milliseconds.

One timerfd of timerfd_create(2) on the monotonic clock, readable by the loop when it is due.  (`os.timerfd_create`
exists from Python 3.13 on; until then the C library is called.)  A 1 ms timetable kept by loop timers broke 231 of
1,999 gaps, measured; spinning would keep it and burn the core.

- At most one wake-up is set: the earliest asked for.
- It may ring late (the loop was busy), never early.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable

__all__ = ["Alarm"]

CLOCK_MONOTONIC = 1
TFD_TIMER_ABSTIME = 1
TFD_NONBLOCK = os.O_NONBLOCK
TFD_CLOEXEC = os.O_CLOEXEC
ITIMERSPEC = struct.Struct("@qqqq")  # interval s, ns; value s, ns
SECOND_NS = 1_000_000_000
NEVER = 1 << 62

_libc = ctypes.CDLL(None, use_errno=True)


class Alarm:
    """Calls `ring` once when the monotonic clock reaches the earliest time asked for by `at`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._at_ns = NEVER
        self._fd: int = _libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        loop.add_reader(self._fd, self._on_due)

    def at(self, when_ns: int) -> None:
        """Ring at `when_ns` (`time.monotonic_ns`), unless an earlier time is set."""
        if when_ns >= self._at_ns:
            return
        self._at_ns = when_ns
        value = ITIMERSPEC.pack(0, 0, *divmod(max(when_ns, 1), SECOND_NS))  # a time of 0 would disarm it
        if _libc.timerfd_settime(self._fd, TFD_TIMER_ABSTIME, value, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Give the descriptor back."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _on_due(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # set anew between the wake-up and this read
        self._at_ns = NEVER
        self._ring()
