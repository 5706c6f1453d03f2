"""Which lease stands where: the table that is true when messages about leases are lost, late or repeated.

May not: decide who gets a lease (`broker/scheduler.py`) or open a ledger (`broker/leases.py`,
`actors/sender/lease.py`).

Invariants
- A lease is named by its number, which is never reused within a start. Number 0 is a free slot.
- The broker writes a lease's details first and `number` last; `number` alone makes the record true. `check` guards
  readers on CPUs that reorder stores: a record that does not add up is not there yet.
- `held` is what the actor works on, `done` the last lease it gave back; they say nothing unless they equal `number`.

broker's half
# offset  0        8          16      24      32      40      48 .. 63
#         | number | campaign | shard | epoch | order | check | zero           row: (actor, slot)   writer: broker
actor's half
# offset  0      8      16 .. 127
#         | held | done | zero                                                 row: (actor, slot)   writer: that actor
order word
# bit     0        8       9       10     16         30       40 .. 55
#         | action | gated | retry | zero | rows_max | weight | relay |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shm.live.layout import LANE, Table, record, word_of

if TYPE_CHECKING:
    from shm.arena import Arena

__all__ = [
    "ACTOR_HALF",
    "BROKER_HALF",
    "CANCEL",
    "RETURN",
    "RUN",
    "TABLES",
    "LeaseTable",
    "Order",
    "pack_order",
    "unpack_order",
]

BROKER_HALF = record(
    [("number", "<i8"), ("campaign", "<i8"), ("shard", "<i8"), ("epoch", "<i8"), ("order", "<i8"), ("check", "<i8")],
    LANE,
)
ACTOR_HALF = record([("held", "<i8"), ("done", "<i8")], LANE)
assert word_of(BROKER_HALF, "order") == 4, "layout is read by other processes: raise LAYOUT_VERSION instead"
assert word_of(ACTOR_HALF, "done") == 1

TABLES = (
    Table("leases.broker", BROKER_HALF, ("actors", "slots"), "broker"),
    Table("leases.actor", ACTOR_HALF, ("actors", "slots"), "actor"),
)

_WORDS = LANE // 8
_NUMBER, _CAMPAIGN, _SHARD, _EPOCH, _ORDER, _CHECK = range(6)
_HELD, _DONE = 0, 1
_ROWS_MAX_LIMIT = (1 << 14) - 1
_WEIGHT_LIMIT = (1 << 10) - 1
_RELAY_LIMIT = (1 << 16) - 1


RUN, RETURN, CANCEL = 1, 2, 3  # actions: what the holder of a lease is to do


class Order(NamedTuple):
    """The order word, taken apart.

    gated     True: spend grants only; False: the lease is free
    rows_max  most rows to have claimed at once, 0 = the sender's own choice (a poison shard goes by 1)
    relay     index in the relay table that a free lease uses; grants name their own
    retry     given for its due retries: it shares the turns that retries have while fresh mail waits
    weight    of its campaign among those it takes turns with, from 1
    """

    action: int
    gated: bool
    rows_max: int
    relay: int
    retry: bool
    weight: int


def pack_order(
    action: int, *, gated: bool, rows_max: int = 0, relay: int = 0, retry: bool = False, weight: int = 1
) -> int:
    """Return the order word."""
    assert action in (RUN, RETURN, CANCEL), action
    assert 0 <= rows_max <= _ROWS_MAX_LIMIT, rows_max
    assert 0 <= relay <= _RELAY_LIMIT, relay
    assert 1 <= weight <= _WEIGHT_LIMIT, weight
    return action | int(gated) << 8 | int(retry) << 9 | rows_max << 16 | weight << 30 | relay << 40


def unpack_order(word: int) -> Order:
    """Take an order word apart."""
    return Order(
        action=word & 0xFF,
        gated=bool(word >> 8 & 1),
        rows_max=word >> 16 & _ROWS_MAX_LIMIT,
        relay=word >> 40 & _RELAY_LIMIT,
        retry=bool(word >> 9 & 1),
        weight=max(word >> 30 & _WEIGHT_LIMIT, 1),
    )


class LeaseTable:
    """Both halves of the table. Which methods a process may call is said by the heading they stand under."""

    __slots__ = ("_actor", "_actor_table", "_broker", "_broker_table", "_slots")

    def __init__(self, arena: Arena) -> None:
        self._slots = arena.shape.slots
        self._broker = arena.words("leases.broker")
        self._actor = arena.words("leases.actor")
        self._broker_table = arena.table("leases.broker")
        self._actor_table = arena.table("leases.actor")

    # ---- the broker

    def offer(
        self,
        row: int,
        slot: int,
        number: int,
        campaign: int,
        shard: int,
        epoch: int,
        order: int,
    ) -> None:
        """Put a lease into a slot. The slot may show the same lease already (offered again) or none."""
        words, at = self._broker, (row * self._slots + slot) * _WORDS
        assert number > 0
        assert words[at + _NUMBER] in (0, number), "a slot is freed before it is given to another lease"
        words[at + _CAMPAIGN] = campaign
        words[at + _SHARD] = shard
        words[at + _EPOCH] = epoch
        words[at + _ORDER] = order
        words[at + _CHECK] = number ^ campaign ^ shard ^ epoch
        words[at + _NUMBER] = number

    def set_order(self, row: int, slot: int, order: int) -> None:
        """Change what the holder is to do; it sees it before its next write."""
        self._broker[(row * self._slots + slot) * _WORDS + _ORDER] = order

    def free(self, row: int, slot: int) -> None:
        """Empty a slot, whose lease was given back or whose holder is dead."""
        self._broker[(row * self._slots + slot) * _WORDS + _NUMBER] = 0

    def acknowledged(self, row: int, slot: int) -> tuple[int, int]:
        """Return (held, done) as the actor wrote them; each counts only if it equals the lease's number."""
        at = (row * self._slots + slot) * _WORDS
        return self._actor[at + _HELD], self._actor[at + _DONE]

    # ---- the actor, in its own row

    def scan(self, row: int) -> list[tuple[int, int, int, int, int, int]]:
        """Return (slot, number, campaign, shard, epoch, order) of every lease that the row shows, by slot."""
        shown = self._broker_table[row]
        found = []
        for slot in np.flatnonzero(shown["number"]).tolist():
            words, at = self._broker, (row * self._slots + slot) * _WORDS
            number, campaign, shard, epoch, order, check = words[at : at + _CHECK + 1].tolist()
            if number and number ^ campaign ^ shard ^ epoch == check:
                found.append((slot, number, campaign, shard, epoch, order))
        return found

    def take(self, row: int, slot: int, number: int) -> None:
        """Say that the lease is held: from now on its death is the holder's death."""
        self._actor[(row * self._slots + slot) * _WORDS + _HELD] = number

    def done(self, row: int, slot: int, number: int) -> None:
        """Say that the lease is given back: its ledger is closed and synced."""
        self._actor[(row * self._slots + slot) * _WORDS + _DONE] = number

    def order(self, row: int, slot: int) -> int:
        """Return the order word as it is now."""
        return self._broker[(row * self._slots + slot) * _WORDS + _ORDER]

    def order_word(self, row: int, slot: int) -> memoryview[int]:
        """Return the one word that `order` reads, in place: compared before each write (0.03 us)."""
        at = (row * self._slots + slot) * _WORDS + _ORDER
        return self._broker[at : at + 1]

    def number(self, row: int, slot: int) -> int:
        """Return the number that the slot shows now, 0 if it is free."""
        return self._broker[(row * self._slots + slot) * _WORDS + _NUMBER]
