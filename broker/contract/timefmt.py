"""Times as people and programs outside read them: RFC 3339, UTC, milliseconds.

May import the standard library only; reads no clock.
"""

from __future__ import annotations

import time

__all__ = ["rfc3339"]


def rfc3339(seconds: float | None) -> str | None:
    """`2026-11-24T10:28:13.123Z` for seconds since the epoch, rounded to the millisecond; None stays None."""
    if seconds is None:
        return None
    ms = round(seconds * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms // 1000)) + f".{ms % 1000:03d}Z"
