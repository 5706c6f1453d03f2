"""A campaign under way, as the broker holds it in memory: its shards, what is settled, what is leased.

Values and bookkeeping only: no socket, no clock, no decision. Files are the truth (`shm/files/ledger.py`); what
stands here is rebuilt from them at every start (`recovery`).

Invariants
- Every shard is idle (the broker is its leaseholder), leased, or busy (a worker thread is at its file): never two.
- `settled` is the sum of the counts of all shards without an open ledger; with the ledgers that are open, each
  shard is counted exactly once, so the nine counts of an account sum to its audience at every moment.
"""

import heapq
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from broker.breaker import Tally
from broker.contract.campaign import Breaker
from shm.files.ledger import Counts, Ledger, Policy, States
from shm.files.ledger_states import earliest

__all__ = ["ACTIVE", "SENDING", "Lease", "Origin", "Phase", "Running", "ShardState"]

SENDING = ("running", "waiting")  # states in which shards are handed out, as soon as nothing is in the way
ACTIVE = (*SENDING, "paused")


class Phase(Enum):
    """Who may write a shard's ledger now."""

    IDLE = "idle"
    BUSY = "busy"
    LEASED = "leased"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a campaign was launched with that settings may take away: its relay or pool, its sender, its relays."""

    relay: str
    from_address: str
    launched_with: tuple[str, ...]


@dataclass(slots=True)
class ShardState:
    """One shard: its place in the campaign and what its rows came to when they were last counted."""

    number: int
    group: str
    rows: int
    counts: Counts
    phase: Phase = Phase.IDLE
    deaths: int = 0  # holders that died since the last progress: the second makes the shard a suspect (poison)
    failures: int = 0  # leases of it in a row that could not be worked
    rests_until: float = 0.0  # monotonic; 0 = it may be leased at once

    @property
    def fresh(self) -> bool:
        """Whether it holds rows never attempted."""
        return self.counts.pending > 0

    @property
    def concluded(self) -> bool:
        """Whether nothing in it can ever be attempted again by itself."""
        return self.counts.pending + self.counts.in_flight + self.counts.deferred == 0


@dataclass(slots=True)
class Lease:
    """A shard in a sender's hands."""

    number: int
    campaign: "Running"
    shard: ShardState
    row: int
    slot: int
    epoch: int
    ledger: Ledger
    gated: bool
    relay: int
    retry: bool  # taken for retries, while fresh mail waited
    action: int
    since: float  # monotonic
    ordered: float = 0.0  # monotonic time of the last RETURN or CANCEL
    routes: tuple[tuple[int, int], ...] = ()  # (relay, weight) that its slices may go through; () = `relay` alone
    death: str = ""  # how its holder died
    at_hand: int | None = None  # row that its dead holder was composing, if it said so
    cleared: bool = False  # its holder died of a row of another lease

    @property
    def relays(self) -> tuple[int, ...]:
        """Every relay that it may use."""
        return tuple(index for index, _ in self.routes) or (self.relay,)


@dataclass(slots=True)
class Running:
    """A campaign that is running, waiting or paused."""

    id: int
    name: str
    weight: int
    priority: int
    uncertain: Policy  # "resend" or "hold"
    give_up_s: int
    breaker: Breaker
    sustained: float | None  # messages a second that its limits allow in the long run; None = any
    gapped: bool  # has a least gap between attempts: one sender at a time serves it
    relays: list[tuple[int, int]]  # (index in the relay table, weight)
    shards: dict[int, ShardState]
    state: str
    reason: dict[str, Any] | None
    facts: dict[str, Any]  # what the store knows and the account repeats: created, launched, rows, rejected ...
    barred: tuple[str, str, str] | None = None  # (code, message, hint): settings under which nothing can be sent
    by_state: list[int] = field(default_factory=lambda: [0] * len(States))  # of settled shards
    attempts: int = 0
    resent: int = 0
    first_attempt_ns: int = 0  # of all shards that were ever settled; 0 = none yet
    last_conclusion_ns: int = 0
    leases: dict[int, Lease] = field(default_factory=dict)
    fresh: deque[int] = field(default_factory=deque)
    later: list[tuple[int, int]] = field(default_factory=list)  # heap of (due second, shard number)
    tally: Tally = field(default_factory=Tally)  # events of leases that have ended, since the engine started
    judged: Tally = field(default_factory=Tally)  # where the breaker began to judge
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=24))
    busy: int = 0  # shards a worker thread is at
    held: set[int] = field(default_factory=set)  # shards that nobody may lease until the broker has changed them
    cancelling: bool = False
    faulted: float = 0.0  # monotonic time until which a failing disk keeps it waiting; 0 = none does
    fault: str = ""  # what the disk said
    crash: str = ""  # how its senders die, none of its rows being at fault; "" = they do not
    crashes: int = 0  # of them since that was found
    probed_from: float = 0.0  # monotonic; when a shard may be leased again to see whether they still do
    ended: bool = False  # its final account is written
    resting: list[tuple[float, int]] = field(default_factory=list)  # heap of (monotonic, shard) after a failed lease
    origin: Origin | None = None
    passed: float = 0.0  # virtual time of the fair share: attempts / weight

    def file(self, shard: ShardState) -> None:
        """Put an idle shard where the scheduler will find it again: fresh, later, or nowhere."""
        if shard.number in self.held:
            return
        if shard.rests_until:
            heapq.heappush(self.resting, (shard.rests_until, shard.number))
        elif shard.fresh:
            self.fresh.append(shard.number)
        elif shard.counts.deferred:
            heapq.heappush(self.later, (shard.counts.next_attempt_s, shard.number))

    def wake_rested(self, now: float) -> None:
        """File shards again that have rested long enough after a lease that could not be worked."""
        while self.resting and self.resting[0][0] <= now:
            shard = self.shards[heapq.heappop(self.resting)[1]]
            if shard.rests_until <= now:
                shard.rests_until = 0.0
                self.file(shard)

    def settle(self, shard: ShardState, counts: Counts) -> None:
        """A shard came back: its counts join the settled ones."""
        shard.counts = counts
        self._add(counts, 1)
        self.first_attempt_ns = earliest(self.first_attempt_ns, counts.first_attempt_ns)
        self.last_conclusion_ns = max(self.last_conclusion_ns, counts.last_conclusion_ns)

    def unsettle(self, shard: ShardState) -> None:
        """A shard is about to change hands: its rows are counted in its open ledger from now on."""
        self._add(shard.counts, -1)

    def _add(self, counts: Counts, sign: int) -> None:
        for state, number in enumerate(counts.by_state):
            self.by_state[state] += sign * number
        self.attempts += sign * counts.attempts
        self.resent += sign * counts.resent

    @property
    def settled(self) -> Counts:
        """Sum over the shards whose ledger nobody has open."""
        due_s = self.later[0][0] if self.later else 0
        return Counts(
            tuple(self.by_state), self.attempts, self.resent, due_s, self.first_attempt_ns, self.last_conclusion_ns
        )

    def due(self, now_s: int) -> tuple[int | None, int | None]:
        """(shard with fresh rows, shard with due retries), each None if there is none now."""
        while self.fresh and not (self._idle(self.fresh[0]) and self.shards[self.fresh[0]].fresh):
            self.fresh.popleft()
        while self.later and not self._retries(*self.later[0]):
            heapq.heappop(self.later)
        retry = self.later[0][1] if self.later and self.later[0][0] <= now_s else None
        return (self.fresh[0] if self.fresh else None), retry

    def take(self, number: int, *, fresh: bool) -> None:
        """The shard that `due` named was chosen: take it off its queue."""
        if fresh:
            assert self.fresh[0] == number, "only the first of the queue is ever chosen"
            self.fresh.popleft()
        else:
            assert self.later[0][1] == number, "only the first of the queue is ever chosen"
            heapq.heappop(self.later)

    def _idle(self, number: int) -> bool:
        shard = self.shards[number]
        return shard.phase is Phase.IDLE and number not in self.held and not shard.rests_until

    def _retries(self, due_s: int, number: int) -> bool:
        counts = self.shards[number].counts
        return self._idle(number) and counts.deferred > 0 and counts.pending == 0 and counts.next_attempt_s == due_s

    @property
    def quiet(self) -> bool:
        """Whether no shard is leased, being worked at, or about to be."""
        return not self.leases and not self.busy and not self.held

    @property
    def concluded(self) -> bool:
        """Whether every recipient is in a final state."""
        open_states = (States.PENDING, States.CLAIMED, States.SENDING, States.DEFERRED)
        return self.quiet and not any(self.by_state[state] for state in open_states)

    @property
    def may_end(self) -> bool:
        """Whether it has concluded, or is cancelled and nobody is at a shard that still says otherwise."""
        return self.concluded or (self.cancelling and self.quiet)
