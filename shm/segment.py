"""One shared memory segment: made in full, found by name, never seen by Python's resource tracker.

May not: know what is stored in a segment (`shm/arena.py`, `shm/live/suppressed.py` do).

Invariants
- A segment that exists under its name is allocated in full (`posix_fallocate`): a full /dev/shm is an error when it
  is made and never a SIGBUS at a later store. If allocation fails, the name is gone before the caller hears of it.
- Neither making, opening, closing nor removing a segment talks to `multiprocessing.resource_tracker`: the tracker
  would unlink a segment that other processes still use when the first of them ends (bpo-38119), and it would be one
  more process to account for. Python 3.13 has `track=False`; before it, the name `resource_tracker` which
  `multiprocessing.shared_memory` calls is replaced for the moment of the call.
- Closing never fails: a mapping lives until the last view of it is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

__all__ = ["DIRECTORY", "Segment", "ShmFull", "names", "unlink"]

DIRECTORY = Path("/dev/shm")  # noqa: S108  not a temporary file: where Linux keeps POSIX shared memory

_swap = threading.Lock()  # two threads that replace and restore the tracker's name at once would leave it replaced


class ShmFull(OSError):  # noqa: N818  the house names what is wrong, not that something is
    """Shared memory has no room for a segment. Carries errno ENOSPC; the text names the size asked for and the mend."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__(
            errno.ENOSPC,
            f"{DIRECTORY} has no room for {size} bytes of shared memory (`{name}`): "
            "make it larger (Docker: `--shm-size=256m`; elsewhere: `mount -o remount,size=256m /dev/shm`)",
        )
        self.size = size


class _NoTracker:
    """Stands in for the resource tracker while `SharedMemory` is called on Python before 3.13."""

    @staticmethod
    def register(_name: str, _kind: str) -> None:
        """Take no notice."""

    @staticmethod
    def unregister(_name: str, _kind: str) -> None:
        """Take no notice."""


@contextlib.contextmanager
def _untracked() -> Iterator[dict[str, Any]]:
    """Yield the keywords with which `SharedMemory` may be called inside, leaving the tracker out."""
    if sys.version_info >= (3, 13):
        yield {"track": False}
        return
    module: Any = shared_memory
    with _swap:
        tracker = module.resource_tracker
        module.resource_tracker = _NoTracker
        try:
            yield {}
        finally:
            module.resource_tracker = tracker


class Segment:
    """A mapped segment. `buf` is writable bytes; `name` has no leading slash."""

    __slots__ = ("_shm", "buf", "name", "size")

    def __init__(self, shm: Any) -> None:
        self.name: str = shm.name
        self.size: int = shm.size
        self.buf: memoryview = shm.buf
        # From here on the views own the mapping: it goes when the last of them is dropped. Left to SharedMemory, its
        # `close` raises BufferError while any view lives, and so does its `__del__`, into every process's last lines.
        shm._buf = shm._mmap = None  # noqa: SLF001
        self._shm = shm

    @classmethod
    def create(cls, name: str, size: int, owner: tuple[int, int] | None = None) -> Segment:
        """Make and allocate `size` bytes of zeros under `name`, mode 0600, for `owner` (uid, gid) if given.

        Raises ShmFull, leaving nothing behind; FileExistsError if the name is taken.
        """
        with _untracked() as keywords:
            shm: Any = shared_memory.SharedMemory(name, create=True, size=size, **keywords)
        try:
            os.posix_fallocate(shm._fd, 0, size)  # noqa: SLF001  the descriptor has no public name
            if owner is not None:
                os.fchown(shm._fd, *owner)  # noqa: SLF001
        except OSError as error:
            shm.close()
            unlink(name)
            if error.errno == errno.ENOSPC:
                raise ShmFull(name, size) from error
            raise
        return cls(shm)

    @classmethod
    def open(cls, name: str) -> Segment:
        """Map an existing segment. Raises FileNotFoundError if there is none under `name`."""
        with _untracked() as keywords:
            return cls(shared_memory.SharedMemory(name, **keywords))

    def owner(self) -> tuple[int, int]:
        """Return (uid, gid) of the segment."""
        status = os.fstat(self._shm._fd)  # noqa: SLF001
        return status.st_uid, status.st_gid

    def close(self) -> None:
        """Let go of the memory and the descriptor; safe to call twice, and never fails.

        Views taken from the segment stay valid: the memory is unmapped when the last of them is dropped.
        """
        self.buf = memoryview(b"")
        self._shm.close()


def unlink(name: str) -> None:
    """Remove the name; processes that mapped the segment keep it. A name that does not exist is no error."""
    (DIRECTORY / name.lstrip("/")).unlink(missing_ok=True)


def names(prefix: str) -> list[str]:
    """Return the names of existing segments that begin with `prefix`, sorted; also those of a crashed process."""
    return sorted(entry for entry in os.listdir(DIRECTORY) if entry.startswith(prefix))
