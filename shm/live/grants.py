"""Permission to attempt: per lease a small ring of slices from the broker, and what became of them from the actor.

May not: decide how many (`broker/rates.py`) or wait for a slice's time (`actors/sender/pace.py`).

Invariants
- A slice is n attempts; the i-th (from 0) may not be made before `first_ns + i * step_ns` (monotonic).
- A slice lapses LAPSE_NS after its last time. What lapsed is not attempted; the actor counts it as returned.
- The broker stores a slice first and `head` last. `check` guards readers on CPUs that reorder stores: a slice that
  does not add up is not there yet.
- `granted`, `spent`, `returned`, `wanted` and `taken` only grow within one tenant, and
  spent + returned <= granted; outstanding = granted - spent - returned.
- `spent` is stored before the bytes of the attempt are handed over, so a death over-counts and never under-counts.
- Each half names its tenant. A half counts only while both name the same lease.

broker's half
# offset  0        8      16        24 .. 63   64              112             160 ...        832 .. 895
#         | tenant | head | granted | zero     | slice 0       | slice 1       | ... slice 15 | zero
# slice   | n | first_ns | step_ns | gap_ns | relay | check |                   row: (actor, slot)   writer: broker
actor's half
# offset  0        8       16      24         32       40         48 .. 127
#         | tenant | taken | spent | returned | wanted | spent_ns | zero        row: (actor, slot)   writer: that actor

`wanted` is the number of tokens asked for in all: an actor that has `ready` messages raises it to
spent + returned + ready, so that wanted - granted is what it still lacks.
`spent_ns` is the monotonic time of the last attempt, stored before `spent`; 0 = not told. With it a bucket of one
token (a rate below 20 a second) refills from the attempt itself, and not from the moment the broker hears of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shm.live.layout import LANE, Table, align, record, word_of

if TYPE_CHECKING:
    from shm.arena import Arena

__all__ = [
    "ACTOR_HALF",
    "BROKER_HALF",
    "LAPSE_NS",
    "RETURNED",
    "RING",
    "SPENT",
    "SPENT_NS",
    "TABLES",
    "TAKEN",
    "TENANT",
    "WANTED",
    "GrantTable",
    "Slice",
]

LAPSE_NS = 50_000_000
RING = 16  # slices: 16 ticks of 10 ms, more than an actor may be late before its slices lapse

_SLICE_FIELDS = ("n", "first_ns", "step_ns", "gap_ns", "relay", "check")
_SLICE_WORDS = len(_SLICE_FIELDS)
_RING_AT = 8  # words
_PAD = [(f"pad{i}", "<i8") for i in range(_RING_AT - 3)]
BROKER_HALF = record(
    [
        ("tenant", "<i8"),
        ("head", "<i8"),
        ("granted", "<i8"),
        *_PAD,
        *((f"{field}_{i}", "<i8") for i in range(RING) for field in _SLICE_FIELDS),
    ],
    align((_RING_AT + RING * _SLICE_WORDS) * 8),
)
ACTOR_HALF = record(
    [(name, "<i8") for name in ("tenant", "taken", "spent", "returned", "wanted", "spent_ns")],
    LANE,
)
assert word_of(BROKER_HALF, "n_0") == _RING_AT, "layout is read by other processes: raise LAYOUT_VERSION instead"
assert word_of(BROKER_HALF, "check_15") == 103
assert BROKER_HALF.itemsize == 896
assert word_of(ACTOR_HALF, "spent_ns") == 5

TABLES = (
    Table("grants.broker", BROKER_HALF, ("actors", "slots"), "broker"),
    Table("grants.actor", ACTOR_HALF, ("actors", "slots"), "actor"),
)

TENANT, TAKEN, SPENT, RETURNED, WANTED, SPENT_NS = range(6)
_HEAD, _GRANTED = 1, 2
_B_WORDS = BROKER_HALF.itemsize // 8
_A_WORDS = ACTOR_HALF.itemsize // 8


class Slice(NamedTuple):
    """A grant: n attempts at first_ns, first_ns + step_ns, ... through relay; no two closer than gap_ns (0 = none).

    The gap counts from the attempt before, also from the last one of the slice before.
    """

    n: int
    first_ns: int
    step_ns: int
    gap_ns: int
    relay: int

    @property
    def lapse_ns(self) -> int:
        """Return the monotonic time from which what is left of the slice must be returned."""
        return self.first_ns + (self.n - 1) * self.step_ns + LAPSE_NS


class GrantTable:
    """Both halves of the table. Which methods a process may call is said by the heading they stand under."""

    __slots__ = ("_actor", "_broker", "_slots")

    def __init__(self, arena: Arena) -> None:
        self._slots = arena.shape.slots
        self._broker = arena.words("grants.broker")
        self._actor = arena.words("grants.actor")

    # ---- the broker

    def open(self, row: int, slot: int, number: int) -> None:
        """Give the ring to lease `number`, empty. Before the lease is offered."""
        words, at = self._broker, (row * self._slots + slot) * _B_WORDS
        words[at + TENANT] = 0
        words[at + _HEAD] = 0
        words[at + _GRANTED] = 0
        words[at + TENANT] = number

    def push(
        self,
        row: int,
        slot: int,
        n: int,
        first_ns: int,
        step_ns: int,
        gap_ns: int,
        relay: int,
    ) -> bool:
        """Publish a slice, which the windows were charged for already. False: the ring is full, nothing was done."""
        words, at = self._broker, (row * self._slots + slot) * _B_WORDS
        assert n > 0
        head = words[at + _HEAD]
        taken = self._actor[(row * self._slots + slot) * _A_WORDS + TAKEN] if self._met(row, slot) else 0
        if head - taken >= RING:
            return False
        ring = at + _RING_AT + head % RING * _SLICE_WORDS
        words[ring] = n
        words[ring + 1] = first_ns
        words[ring + 2] = step_ns
        words[ring + 3] = gap_ns
        words[ring + 4] = relay
        words[ring + 5] = head + 1 ^ n ^ first_ns ^ step_ns ^ gap_ns ^ relay
        words[at + _GRANTED] += n
        words[at + _HEAD] = head + 1
        return True

    def granted(self, row: int, slot: int) -> int:
        """Return the tokens pushed to the present tenant in all."""
        return self._broker[(row * self._slots + slot) * _B_WORDS + _GRANTED]

    def read(self, row: int, slot: int) -> tuple[int, int, int, int, int]:
        """Return (tenant, spent, returned, wanted, taken) as the actor wrote them.

        They count only if the tenant is the lease that the caller means; a row that is just changing hands reads as
        nobody's (all 0).
        """
        words, at = self._actor, (row * self._slots + slot) * _A_WORDS
        tenant = words[at + TENANT]
        taken, spent, returned, wanted = words[at + TAKEN : at + WANTED + 1].tolist()
        if words[at + TENANT] != tenant:
            return 0, 0, 0, 0, 0
        return tenant, spent, returned, wanted, taken

    def spent_ns(self, row: int, slot: int) -> int:
        """Return the monotonic time of the actor's last attempt, 0 if it does not tell.

        Read it after `read`: then it is never earlier than any attempt counted there, since the actor stores it first.
        """
        return self._actor[(row * self._slots + slot) * _A_WORDS + SPENT_NS]

    # ---- the actor, in its own row

    def accept(self, row: int, slot: int, number: int) -> memoryview[int]:
        """Give the actor's half to lease `number`, from zero, and return its words (SPENT, RETURNED, WANTED, ...)."""
        at = (row * self._slots + slot) * _A_WORDS
        words = self._actor[at : at + _A_WORDS]
        words[TENANT] = 0
        for word in range(TAKEN, SPENT_NS + 1):
            words[word] = 0
        words[TENANT] = number
        return words

    def next_slice(self, row: int, slot: int) -> Slice | None:
        """Take the oldest slice not yet taken, or None. Lapsed slices are handed out too: the actor returns them."""
        broker, at = self._broker, (row * self._slots + slot) * _B_WORDS
        actor, mine = self._actor, (row * self._slots + slot) * _A_WORDS
        taken = actor[mine + TAKEN]
        if broker[at + _HEAD] <= taken or broker[at + TENANT] != actor[mine + TENANT]:
            return None
        ring = at + _RING_AT + taken % RING * _SLICE_WORDS
        n, first_ns, step_ns, gap_ns, relay, check = broker[ring : ring + _SLICE_WORDS].tolist()
        if taken + 1 ^ n ^ first_ns ^ step_ns ^ gap_ns ^ relay != check:
            return None
        actor[mine + TAKEN] = taken + 1
        return Slice(n, first_ns, step_ns, gap_ns, relay)

    # ---- both

    def _met(self, row: int, slot: int) -> bool:
        """Return whether both halves name the same lease."""
        at = row * self._slots + slot
        return self._broker[at * _B_WORDS + TENANT] == self._actor[at * _A_WORDS + TENANT]
