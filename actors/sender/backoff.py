"""How long a pool waits between attempts to open a connection that fail. Pure: the dice are the caller's."""

from __future__ import annotations

from typing import Final

__all__ = ["FIRST_S", "MAX_S", "backoff_s"]

FIRST_S: Final = 0.25
MAX_S: Final = 15.0


def backoff_s(failures: int, noise: float) -> float:
    """How long to wait after the n-th failure in a row (from 1): doubling, capped, and up to half as long again.

    noise  0..1, so that the senders do not knock together
    """
    return min(FIRST_S * 2.0 ** min(failures - 1, 16), MAX_S) * (1 + noise / 2)
