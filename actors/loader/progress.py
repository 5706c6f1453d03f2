"""How far a job is: what its watcher is told, at most four times a second.

The job functions know their caller by two callbacks only: `Progress` takes a map, `Cancelled` answers whether to stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from broker.contract.errors import EcmError

__all__ = ["INTERVAL_S", "Cancelled", "Meter", "Progress"]

INTERVAL_S: Final = 0.25

Progress = Callable[[dict[str, Any]], None]
Cancelled = Callable[[], bool]


class Meter:
    """Counts bytes and rows of one job, and looks whether it is to stop."""

    def __init__(self, progress: Progress, cancelled: Cancelled) -> None:
        self._progress = progress
        self._cancelled = cancelled
        self._began = time.monotonic()
        self._told = 0.0
        self._phase = ""
        self._phase_began = self._began
        self._bytes_total = 0
        self._rows = 0

    def phase(self, name: str, bytes_total: int) -> None:
        """A new stretch of work begins: `bytes_total` is its whole, 0 if unknown."""
        self._phase = name
        self._bytes_total = bytes_total
        self._phase_began = time.monotonic()
        self._told = 0.0
        self.at(0, self._rows)

    def at(self, done: int, rows: int) -> None:
        """`done` bytes of the phase and `rows` rows are behind us. Raises EcmError if the job is to stop."""
        if self._cancelled():
            raise EcmError("campaign_cancelled", "the job was cancelled")
        self._rows = rows
        now = time.monotonic()
        if now - self._told < INTERVAL_S:
            return
        self._told = now
        passed = now - self._phase_began
        share = done / self._bytes_total if self._bytes_total else 0.0
        self._progress(
            {
                "phase": self._phase,
                "bytes": done,
                "bytes_total": self._bytes_total,
                "rows": rows,
                "per_second": round(rows / (now - self._began), 1) if now > self._began else 0.0,
                "eta_s": round(passed / share - passed, 1) if share > 0 else None,
            }
        )

    @property
    def seconds(self) -> float:
        """Since the job began."""
        return time.monotonic() - self._began
