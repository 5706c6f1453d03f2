"""Group commit: one fdatasync at a time, in a thread, for everything that changed in all held ledgers.

It makes claims durable before their bytes may leave, and results durable soon after.  It decides nothing about rows.

- A sync covers what was stored before it began: leases are told (`begin_sync`) before the thread starts, and what
  they store meanwhile waits for the next one.
- Reply texts are synced before the records that need them.
- A sync that failed is final for its file: the lease is handed back with the reason.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from actors.sender.lease import Lease

__all__ = ["Chunks", "GroupCommit", "Traces", "write_traces"]

Chunks = list[tuple[int, bytes]]  # of trace files: descriptor, what to append


class GroupCommit:
    """At most one group is under way.

    done  called on the loop with the leases (each knows its fault) and what went wrong with the traces
    """

    def __init__(self, thread: ThreadPoolExecutor, interval_ns: int, done: Callable[[list[Lease], str], None]) -> None:
        self._thread = thread
        self._interval_ns = interval_ns
        self._done = done
        self._began_ns = 0
        self.busy = False
        self.urgent = False  # somebody waits for it

    def due(self, now_ns: int) -> bool:
        """Whether a group should begin now."""
        return not self.busy and (self.urgent or now_ns - self._began_ns >= self._interval_ns)

    def begin(self, leases: list[Lease], traces: Chunks) -> None:
        """Sync these leases' files and append to trace files, in the thread."""
        self.busy, self.urgent = True, False
        self._began_ns = time.monotonic_ns()
        for lease in leases:
            lease.begin_sync()
        future = asyncio.get_running_loop().run_in_executor(self._thread, _sync, leases, traces)
        future.add_done_callback(self._finish)

    def _finish(self, future: asyncio.Future[tuple[list[Lease], str]]) -> None:
        self.busy = False
        self._done(*future.result())


def _sync(leases: list[Lease], traces: Chunks) -> tuple[list[Lease], str]:
    for lease in leases:
        try:
            lease.replies.sync()
            lease.ledger.sync()
        except OSError as error:
            # Noted here, in the thread: a close that waits behind this sync must not try again and believe the answer.
            lease.fail(f"{lease.ledger.path.name}: {error.strerror}")
    return leases, write_traces(traces)


def write_traces(traces: Chunks) -> str:
    """Append to trace files; returns what went wrong, or ""."""
    try:
        for descriptor, data in traces:
            os.write(descriptor, data)
    except OSError as error:
        return f"the trace has a hole: {error.strerror}"
    return ""


class Traces:
    """`[engine] trace`: the time of each attempt, a file per campaign, so that every limit can be checked afterwards.

    A record is (monotonic ns, lease number), 16 bytes; it is buffered until the next group commit.
    """

    def __init__(self, directory: Path, actor: str, start_id: str) -> None:
        self._directory = directory
        self._suffix = f"{actor}.{start_id}"
        self._files: dict[int, tuple[int, bytearray]] = {}

    def buffer(self, campaign: int) -> bytearray:
        """Where the attempts of a campaign are appended."""
        if campaign not in self._files:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            path = self._directory / f"{campaign}.{self._suffix}"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._files[campaign] = descriptor, bytearray()
        return self._files[campaign][1]

    def take(self) -> Chunks:
        """What has gathered, to be written: (descriptor, bytes)."""
        taken = []
        for descriptor, buffer in self._files.values():
            if buffer:
                taken.append((descriptor, bytes(buffer)))
                buffer.clear()
        return taken

    def forget(self, campaign: int) -> int | None:
        """Keep nothing of a campaign whose attempts have been taken; its descriptor, for `close_one`, if it has one."""
        if campaign not in self._files:
            return None
        descriptor, buffer = self._files.pop(campaign)
        assert not buffer, "attempts are taken before their campaign is forgotten"
        return descriptor

    @staticmethod
    def close_one(descriptor: int) -> None:
        """Close a file that `forget` returned, once nothing that was taken is still to be written to it."""
        os.close(descriptor)

    def close(self) -> None:
        """Write what has gathered and close the files."""
        write_traces(self.take())
        for descriptor, _ in self._files.values():
            os.close(descriptor)
        self._files.clear()
