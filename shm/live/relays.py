"""How each sender stands with each relay, and how many connections the broker allows it.

May not: decide allowances or judge a relay (`broker/pressure.py` does).

Invariants
- Two rows per (actor, relay), one writer each. Every word means something by itself, in any order.
- Relays are numbered by their place in the settings, the same in every process of one start.

actor's half
# offset  0             8          16         24     32            40         48 .. 127
#         | connections | refusals | failures | mode | close_count | since_ns | zero  row: (actor, relay)  writer: actor
broker's half
# offset  0           8       16             24 .. 127
#         | allowance | state | mode_ceiling | zero                                  row: (actor, relay)  writer: broker
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from shm.live.layout import LANE, Table, record, word_of

if TYPE_CHECKING:
    from shm.arena import Arena

__all__ = [
    "ACTOR_HALF",
    "ALLOWANCE",
    "BROKER_HALF",
    "CLOSE_COUNT",
    "CONNECTIONS",
    "FAILURES",
    "MODE",
    "MODE_CEILING",
    "REFUSALS",
    "SINCE_NS",
    "STATE",
    "TABLES",
    "RelayState",
    "RelayTable",
    "RelayUse",
]

ACTOR_HALF = record(
    [(name, "<i8") for name in ("connections", "refusals", "failures", "mode", "close_count", "since_ns")],
    LANE,
)
BROKER_HALF = record([("allowance", "<i8"), ("state", "<i8"), ("mode_ceiling", "<i8")], LANE)
assert word_of(ACTOR_HALF, "since_ns") == 5, "layout is read by other processes: raise LAYOUT_VERSION instead"
assert word_of(BROKER_HALF, "mode_ceiling") == 2

TABLES = (
    Table("relays.actor", ACTOR_HALF, ("actors", "relays"), "actor"),
    Table("relays.broker", BROKER_HALF, ("actors", "relays"), "broker"),
)

CONNECTIONS, REFUSALS, FAILURES, MODE, CLOSE_COUNT, SINCE_NS = range(6)
ALLOWANCE, STATE, MODE_CEILING = range(3)
_WORDS = LANE // 8


class RelayState(IntEnum):
    """How a relay stands; 0 is a relay nobody declared."""

    UP = 1
    TRIPPED = 2
    PROBING = 3


class RelayUse(NamedTuple):
    """What one actor says of one relay.

    connections  open now; refusals  greeted or answered with "not now" (421 and the like); failures  could not open
    mode         transaction mode in use; close_count  fewest messages after which the relay closed, 0 = never
    since_ns     monotonic time of the last change of mode or connections
    """

    connections: int
    refusals: int
    failures: int
    mode: int
    close_count: int
    since_ns: int


class RelayTable:
    """Both halves of the table. Which methods a process may call is said by the heading they stand under."""

    __slots__ = ("_actor", "_actor_table", "_broker", "_relays")

    def __init__(self, arena: Arena) -> None:
        self._relays = arena.shape.relays
        self._actor = arena.words("relays.actor")
        self._broker = arena.words("relays.broker")
        self._actor_table = arena.table("relays.actor")

    # ---- the broker

    def allow(self, row: int, relay: int, allowance: int, state: int, mode_ceiling: int) -> None:
        """Tell an actor how many connections it may have, how the relay stands and the highest mode allowed."""
        words, at = self._broker, (row * self._relays + relay) * _WORDS
        words[at + MODE_CEILING] = mode_ceiling
        words[at + STATE] = state
        words[at + ALLOWANCE] = allowance

    def use(self, row: int, relay: int) -> RelayUse:
        """Return what an actor says of a relay."""
        at = (row * self._relays + relay) * _WORDS
        return RelayUse(*self._actor[at : at + SINCE_NS + 1].tolist())

    def uses(self) -> npt.NDArray[np.int64]:
        """Return int64[actors, relays, 6] in the order of RelayUse: a copy."""
        view = self._actor_table.view(np.int64).reshape(*self._actor_table.shape, _WORDS)
        return view[..., : SINCE_NS + 1].copy()

    def wipe(self, row: int) -> None:
        """Zero the actor's half of a row whose actor is dead: the dead have no connections. No actor may run in it."""
        self._actor_table[row] = np.zeros(1, ACTOR_HALF)[0]

    # ---- the actor, in its own row

    def words(self, row: int, relay: int) -> memoryview[int]:
        """Return the actor's own words for a relay: `w[CONNECTIONS] += 1`."""
        at = (row * self._relays + relay) * _WORDS
        return self._actor[at : at + _WORDS]

    def allowance(self, row: int, relay: int) -> int:
        """Return how many connections the actor may have to the relay now."""
        return self._broker[(row * self._relays + relay) * _WORDS + ALLOWANCE]

    def state(self, row: int, relay: int) -> int:
        """Return how the relay stands (RelayState)."""
        return self._broker[(row * self._relays + relay) * _WORDS + STATE]

    def mode_ceiling(self, row: int, relay: int) -> int:
        """Return the highest transaction mode allowed, 0 = no ceiling."""
        return self._broker[(row * self._relays + relay) * _WORDS + MODE_CEILING]
