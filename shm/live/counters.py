"""What happened, counted: one row per lease slot, for rates, totals and alerts. Accounts count ledgers instead.

May not: be used to account for a recipient.

Invariants
- A row names whom it counts for. The actor writes tenant 0, zeroes, then the tenant; a reader takes a row only if the
  tenant is the same before and after, so nobody is credited with another lease's numbers.
- Within one tenant every word only grows.

# offset  0        8           16     24         32        40       48          56           64
#         | tenant | attempted | sent | deferred | bounced | failed | uncertain | suppressed | cancelled |
# offset  72             80 .. 127
#         | sender_fault | zero
# sender_fault: attempts refused for a fault of ours (block list, authentication); counted under deferred too
# row: (actor, lease slot)   writer: that actor   tenant: lease number, 0 = nobody
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from shm.live.layout import LANE, Table, record, word_of

if TYPE_CHECKING:
    from shm.arena import Arena

__all__ = [
    "ATTEMPTED",
    "AT_HAND",
    "BOUNCED",
    "CANCELLED",
    "COUNTERS",
    "DEFERRED",
    "FAILED",
    "NAMES",
    "SENDER_FAULT",
    "SENT",
    "SUPPRESSED",
    "TABLES",
    "TENANT",
    "UNCERTAIN",
    "CounterTable",
    "Counts",
]

NAMES = ("attempted", "sent", "deferred", "bounced", "failed", "uncertain", "suppressed", "cancelled", "sender_fault")
COUNTERS = record([("tenant", "<i8"), *((name, "<i8") for name in NAMES), ("at_hand", "<i8")], LANE)
assert word_of(COUNTERS, "cancelled") == 8, "layout is read by other processes: raise LAYOUT_VERSION instead"

TABLES = (Table("counters", COUNTERS, ("actors", "slots"), "actor"),)

TENANT, ATTEMPTED, SENT, DEFERRED, BOUNCED, FAILED, UNCERTAIN, SUPPRESSED, CANCELLED, SENDER_FAULT = range(10)
AT_HAND = SENDER_FAULT + 1  # under suspicion: 1 + the ledger row being composed, 0 = none; no count
_WORDS = LANE // 8
_READS_MAX = 4  # a row changes its tenant at most once per lease: a reader that fails twice met a stopped writer


class Counts(NamedTuple):
    """The counts of one tenant."""

    attempted: int
    sent: int
    deferred: int
    bounced: int
    failed: int
    uncertain: int
    suppressed: int
    cancelled: int
    sender_fault: int


class CounterTable:
    """The counters of all leases. Actors open rows, anybody reads."""

    __slots__ = ("_slots", "_table", "_words")

    def __init__(self, arena: Arena) -> None:
        self._slots = arena.shape.slots
        self._words = arena.words("counters")
        self._table = arena.table("counters")

    # ---- the actor, in its own row

    def open(self, row: int, slot: int, number: int) -> memoryview[int]:
        """Give the row to lease `number`, from zero, and return its words: `w[SENT] += 1` is the hot way to count."""
        at = (row * self._slots + slot) * _WORDS
        words = self._words[at : at + _WORDS]
        words[TENANT] = 0
        for word in range(ATTEMPTED, AT_HAND + 1):
            words[word] = 0
        words[TENANT] = number
        return words

    # ---- anybody

    def read(self, row: int, slot: int) -> tuple[int, Counts] | None:
        """Return (lease number, its counts), or None if the row is nobody's or is changing hands just now."""
        at = (row * self._slots + slot) * _WORDS
        words = self._words
        for _ in range(_READS_MAX):
            tenant = words[at + TENANT]
            counts = words[at + ATTEMPTED : at + SENDER_FAULT + 1].tolist()
            if tenant == 0:
                return None
            if words[at + TENANT] == tenant:
                return tenant, Counts(*counts)
        return None

    def at_hand(self, row: int, slot: int, number: int) -> int | None:
        """Return the ledger row that the actor says it is composing under lease `number`, None if it names none."""
        at = (row * self._slots + slot) * _WORDS
        named = self._words[at + AT_HAND]
        return named - 1 if named and self._words[at + TENANT] == number else None

    def totals(self) -> npt.NDArray[np.int64]:
        """Return int64[actors, slots, 10], tenants first: a copy, each word read once.

        Rows whose tenant changed meanwhile read as nobody's (all zero), so that they are counted a moment later.
        """
        view = self._table.view(np.int64).reshape(*self._table.shape, _WORDS)[..., : SENDER_FAULT + 1]
        copy = view.copy()
        copy[copy[..., TENANT] != view[..., TENANT]] = 0
        return copy
