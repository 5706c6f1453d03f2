"""Waiting after failures (actors/sender/relays.py); the pools themselves are tested in a real sender."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.sender.relays import BACKOFF_FIRST_S, BACKOFF_MAX_S, backoff_s


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_waits_grow_to_the_cap_and_stay_there(failures: int, noise: float) -> None:
    """Never shorter than the first, never longer than one and a half times the cap, never shorter than before."""
    wait_s = backoff_s(failures, noise)
    assert BACKOFF_FIRST_S <= wait_s <= 1.5 * BACKOFF_MAX_S
    assert backoff_s(failures + 1, noise) >= wait_s
