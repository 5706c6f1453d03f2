"""Who leads and who follows (actors/sender/steering.py), with other senders writing their words at any moment."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from actors.sender.steering import Steering
from shm.arena import Arena, Shape
from shm.live.relays import TOGETHER, RelayState, RelayTable


@pytest.fixture
def table() -> Iterator[RelayTable]:
    """The relays of an arena of three senders, ten connections allowed to each."""
    arena = Arena.create(f"/ecm-{secrets.token_hex(6)}", Shape(actors=3, slots=1, relays=1), "0" * 12, "boot")
    relays = RelayTable(arena)
    for row in range(3):
        relays.allow(row, 0, 10, RelayState.UP, 0)
    yield relays
    del relays
    arena.close()
    Arena.unlink(arena.name)


class LetsGo:
    """The actors' half as one sender reads it, while the sender in `row` loses its need behind the first reads."""

    def __init__(self, words: npt.NDArray[np.int64], row: int, after: int) -> None:
        self._words, self._row, self._left = words, row, after

    def __getitem__(self, which: Any) -> Any:
        found = self._words[which]
        found = found.copy() if isinstance(found, np.ndarray) else found
        self._left -= 1
        if not self._left:
            self._words[self._row, TOGETHER] = 0
        return found


def look(steering: Steering, now_s: float) -> None:
    steering.look(now_s, crowded=True, done=int(now_s * 10), latency_s=0.01, ceiling=1)


@pytest.mark.parametrize("after", [1, 2, 3, 4])
@pytest.mark.parametrize("gone", [0, 1])
def test_a_sender_that_lets_go_between_two_reads_disturbs_nobody(table: RelayTable, gone: int, after: int) -> None:
    """The leader, or the follower itself as another sees it: whoever looks keeps a share of one at least."""
    leader, follower = (Steering(row, 0, table, random.Random(row)) for row in (0, 1))
    for now_s in (10.0, 10.1):
        look(leader, now_s)
        look(follower, now_s)
    actor = follower._actor
    follower._actor = LetsGo(actor, gone, after)  # type: ignore[assignment]
    look(follower, 10.2)
    follower._actor = actor
    for now_s in (10.3, 10.4):
        look(follower, now_s)
        assert follower.target >= 1
    assert table.words(1, 0)[TOGETHER] >= 1
