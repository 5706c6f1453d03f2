"""How each sender stands with each relay, and how many connections the broker allows it.

May not: decide allowances or judge a relay (`broker/pressure.py` does).

Invariants
- Two rows per (actor, relay), one writer each. Every word means something by itself, in any order.
- Relays are numbered by their place in the settings, the same in every process of one start.

actor's half, row: (actor, relay), writer: actor
# offset  0             8          16         24     32            40         48         56       64
#         | connections | refusals | failures | mode | close_count | since_ns | accepted | blamed | throttled
#         72       80           88        96        104    112      120 .. 127
#         | window | latency_us | stepped | opening | done | slowed | together
broker's half, row: (actor, relay), writer: broker
# offset  0           8       16             24               32                   40 .. 127
#         | allowance | state | mode_ceiling | window_ceiling | close_count_learnt | zero
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
    "ACCEPTED",
    "ACTOR_HALF",
    "ALLOWANCE",
    "BLAMED",
    "BROKER_HALF",
    "CLOSE_COUNT",
    "CLOSE_COUNT_LEARNT",
    "CONNECTIONS",
    "DONE",
    "FAILURES",
    "LATENCY_US",
    "MODE",
    "MODE_CEILING",
    "OPENING",
    "REFUSALS",
    "SINCE_NS",
    "SLOWED",
    "STATE",
    "STEPPED",
    "TABLES",
    "THROTTLED",
    "TOGETHER",
    "WINDOW",
    "WINDOW_CEILING",
    "RelayState",
    "RelayTable",
    "RelayUse",
]

ACTOR_HALF = record(
    [
        (name, "<i8")
        for name in (
            "connections", "refusals", "failures", "mode", "close_count", "since_ns", "accepted", "blamed", "throttled",
            "window", "latency_us", "stepped", "opening", "done", "slowed", "together",
        )
    ],
    LANE,
)  # fmt: skip
BROKER_HALF = record(
    [(name, "<i8") for name in ("allowance", "state", "mode_ceiling", "window_ceiling", "close_count_learnt")], LANE
)
assert word_of(ACTOR_HALF, "stepped") == 11, "layout is read by other processes: raise LAYOUT_VERSION instead"
assert word_of(ACTOR_HALF, "opening") == 12
assert word_of(ACTOR_HALF, "together") == 15
assert word_of(BROKER_HALF, "close_count_learnt") == 4

TABLES = (
    Table("relays.actor", ACTOR_HALF, ("actors", "relays"), "actor"),
    Table("relays.broker", BROKER_HALF, ("actors", "relays"), "broker"),
)

CONNECTIONS, REFUSALS, FAILURES, MODE, CLOSE_COUNT, SINCE_NS, ACCEPTED, BLAMED, THROTTLED = range(9)
WINDOW, LATENCY_US, STEPPED, OPENING, DONE, SLOWED, TOGETHER = range(9, 16)
ALLOWANCE, STATE, MODE_CEILING, WINDOW_CEILING, CLOSE_COUNT_LEARNT = range(5)
_WORDS = LANE // 8


class RelayState(IntEnum):
    """How a relay stands; 0 is a relay nobody declared."""

    UP = 1
    TRIPPED = 2
    PROBING = 3


class RelayUse(NamedTuple):
    """What one actor says of one relay.

    connections  open now; refusals  greeted or answered with "not now" (421 and the like); failures  could not open
    mode         transaction mode in use; close_count  after so many messages the relay is wont to close, 0 = not known
    since_ns     monotonic time of the last change of mode or connections
    accepted     messages it took; blamed  replies that blame us (`About.SENDER`); throttled  that say "too fast"
    window       messages in flight allowed on one connection now; latency_us  of late, MAIL to final reply
    stepped      the mode it was stepped down to because it broke a better one; 0 = it did not, or long ago
    opening      connections being opened, and not among `connections` yet: both count against the allowance
    """

    connections: int
    refusals: int
    failures: int
    mode: int
    close_count: int
    since_ns: int
    accepted: int
    blamed: int
    throttled: int
    window: int
    latency_us: int
    stepped: int
    opening: int = 0


class RelayTable:
    """Both halves of the table. Which methods a process may call is said by the heading they stand under."""

    __slots__ = ("_actor", "_actor_table", "_broker", "_broker_table", "_relays")

    def __init__(self, arena: Arena) -> None:
        self._relays = arena.shape.relays
        self._actor = arena.words("relays.actor")
        self._broker = arena.words("relays.broker")
        self._actor_table = arena.table("relays.actor")
        self._broker_table = arena.table("relays.broker")

    # ---- the broker

    def allow(
        self,
        row: int,
        relay: int,
        allowance: int,
        state: int,
        mode_ceiling: int,
        window_ceiling: int = 0,
        close_count: int = 0,
    ) -> None:
        """Tell an actor how many connections it may have, how the relay stands, the highest mode and window, and after
        how many messages the relay closes a connection.
        """
        words, at = self._broker, (row * self._relays + relay) * _WORDS
        words[at + CLOSE_COUNT_LEARNT] = close_count
        words[at + WINDOW_CEILING] = window_ceiling
        words[at + MODE_CEILING] = mode_ceiling
        words[at + STATE] = state
        words[at + ALLOWANCE] = allowance

    def use(self, row: int, relay: int) -> RelayUse:
        """Return what an actor says of a relay."""
        at = (row * self._relays + relay) * _WORDS
        opening = self._actor[at + OPENING]  # first: what leaves it meanwhile is counted twice rather than not at all
        return RelayUse(*self._actor[at : at + OPENING + 1].tolist())._replace(opening=opening)

    def uses(self) -> npt.NDArray[np.int64]:
        """Return int64[actors, relays, 13] in the order of RelayUse: a copy."""
        view = self._actor_table.view(np.int64).reshape(*self._actor_table.shape, _WORDS)
        opening = view[..., OPENING].copy()  # first, as in `use`
        copied = view[..., : OPENING + 1].copy()
        copied[..., OPENING] = opening
        return copied

    def wipe(self, row: int) -> None:
        """Zero the actor's half of a row whose actor is dead: the dead have no connections. No actor may run in it."""
        self._actor_table[row] = np.zeros(1, ACTOR_HALF)[0]

    # ---- the actor, in its own row

    def halves(self, relay: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return both halves of all rows of a relay, live and for reading only: int64[actors, 16] each.

        Besides RelayUse the actor's half tells the other senders DONE (messages concluded ever), SLOWED (times the
        relay made it slow down) and TOGETHER (connections that all senders should have; 0 = it has no need of more).
        """
        shape = (*self._actor_table.shape, _WORDS)
        tables = (self._actor_table, self._broker_table)
        actor, broker = (table.view(np.int64).reshape(shape)[:, relay] for table in tables)
        return actor, broker

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

    def window_ceiling(self, row: int, relay: int) -> int:
        """Return the most messages in flight allowed on one connection, 0 = what the settings say."""
        return self._broker[(row * self._relays + relay) * _WORDS + WINDOW_CEILING]

    def close_count_learnt(self, row: int, relay: int) -> int:
        """Return after how many messages a connection is to be given up before the relay closes it, 0 = no limit."""
        return self._broker[(row * self._relays + relay) * _WORDS + CLOSE_COUNT_LEARNT]
