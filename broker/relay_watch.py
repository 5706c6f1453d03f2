"""What senders say of relays, looked at again and again; what they may do with them, published. Mechanism only.

Who is well is judged in `relay_health`, who may have how many connections is computed in `relay_shares`; this joins
them with shared memory and keeps, per relay, what was seen last.

Invariants
- A relay's place in the table is its own from its declaration to the end of this start, removed or not.
- A sender is allowed nothing of a relay that it has not been told of, and nothing of a removed or tripped one.
- An allowance is raised only when those that were lowered for it are obeyed: what a sender has open, or is opening,
  or may be about to open since its loop has not gone round yet, counts as held.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from broker.contract.relay import Relay
from broker.relay_health import Cause, Health, Sight, SteppedMode
from broker.relay_lately import Lately
from broker.relay_shares import allowances, capped, next_allowances
from broker.store.relays import Learnt
from shm.live.faults import FaultTable
from shm.live.relays import RelayState, RelayTable, RelayUse

__all__ = ["News", "RelayWatch", "Watched"]

CLOSED_S = 86400.0  # how long it is believed that a relay closes after so many messages
MODES = {0: None, 1: "lockstep", 2: "pipelining", 3: "bdat"}

_NOTHING = RelayUse(*[0] * len(RelayUse._fields))


@dataclass(frozen=True, slots=True)
class News:
    """Something happened to a relay: the event's name and what belongs to it."""

    name: str
    event: str
    reason: str | None
    seconds: float | None = None  # how long it will be so, at least


@dataclass(slots=True)
class Watched:
    """One relay as it stands. `rows` are senders' rows of the arena.

    relay    its settings, the last ones if it was removed
    workers  rows that hold leases which may use it;  target  what each row is to be allowed in the end
    probe    the row that makes probes and trials
    """

    index: int
    relay: Relay
    health: Health
    removed: bool = False
    reason: str | None = None
    stepped: SteppedMode = field(default_factory=SteppedMode)
    close_count: int = 0
    close_until: float = 0.0  # monotonic
    workers: frozenset[int] = frozenset()
    target: dict[int, int] = field(default_factory=dict)
    probe: int = 0
    changed: bool = False  # something worth keeping was learnt
    lately: Lately = field(default_factory=Lately)
    used: dict[int, RelayUse] = field(default_factory=dict)
    allowed: dict[int, int] = field(default_factory=dict)
    published: dict[int, tuple[int, ...]] = field(default_factory=dict)
    lowered: dict[int, tuple[float, int]] = field(default_factory=dict)  # row -> (when, from how many)

    @property
    def limit(self) -> int:
        """Connections allowed in all now."""
        if self.removed or self.health.state is RelayState.TRIPPED:
            return 0
        return 1 if self.health.state is RelayState.PROBING else self.relay.connections

    @property
    def down(self) -> bool:
        """Whether no campaign can count on it."""
        return self.health.state is not RelayState.UP

    @property
    def mode(self) -> str | None:
        """The best transaction mode that anybody speaks with it now."""
        return MODES[max((use.mode for use in self.used.values()), default=0)]

    def closes_at(self, now: float) -> int:
        """After how many messages it closes a connection, as far as is believed still; 0 = not known."""
        return self.close_count if now < self.close_until else 0

    def may_join(self, row: int) -> bool:
        """Whether the sender in `row` may open connections, or will when the others have made room for it."""
        if self.health.state is RelayState.PROBING:
            return row == self.probe
        return self.target.get(row, 0) > 0 if row in self.workers else len(self.workers) < self.limit


class RelayWatch:
    """All relays of a start. `rows`: the senders' rows; `connections_max`: of one sender, over all relays.

    seen    (row, monotonic time) -> whether the sender's loop has gone round since
    """

    def __init__(
        self,
        table: RelayTable,
        faults: FaultTable,
        rows: list[int],
        connections_max: int,
        seen: Callable[[int, float], bool],
    ) -> None:
        self._table = table
        self._faults = faults
        self._rows = rows
        self._most = connections_max
        self._seen = seen
        self.relays: list[Watched] = []
        self._shared: tuple[object, ...] = ()  # what the allowances now stand for, once they are reached
        self.known = dict.fromkeys(rows, 0)  # row -> relays that its sender has been told of

    def declare(self, relay: Relay, now: float) -> Watched:
        """Take up a new relay, behind the others."""
        watched = Watched(len(self.relays), relay, Health(now))
        self.relays.append(watched)
        return watched

    def born(self, row: int) -> None:
        """The sender in `row` is started anew, with all relays that are known now."""
        self.known[row] = len(self.relays)

    def died(self, row: int) -> None:
        """The sender in `row` is dead: it has no connections, and will open none."""
        self._table.wipe(row)
        for watched in self.relays:
            watched.used.pop(row, None)
            watched.lowered.pop(row, None)

    def forget(self, watched: Watched, now: float) -> None:
        """Begin anew with a relay: it is another server."""
        watched.health, watched.stepped, watched.reason = Health(now), SteppedMode(), None
        watched.lately = Lately()
        watched.close_count, watched.close_until, watched.changed = 0, 0.0, True

    def restore(self, watched: Watched, learnt: Learnt, behind: float) -> None:
        """Take up what was kept of a relay; monotonic time is engine time plus `behind`."""
        if learnt.mode:
            watched.stepped.restore(learnt.mode, learnt.mode_until + behind)
        watched.close_count, watched.close_until = learnt.close_count, learnt.close_until + behind
        if learnt.tripped_until:
            now = watched.health.since
            watched.health.restore(now, learnt.tripped_until + behind, learnt.trips, Cause[learnt.cause])
            watched.reason = learnt.reason

    def learnt(self, watched: Watched, ahead: float) -> Learnt:
        """What is to be kept of a relay; engine time is monotonic time plus `ahead`."""
        health, stepped, relay = watched.health, watched.stepped, watched.relay
        known = Learnt(
            relay.name, relay.host, relay.port, stepped.mode, stepped.until + ahead,
            watched.close_count, watched.close_until + ahead,
        )  # fmt: skip
        if not watched.down:
            return known
        return replace(
            known,
            tripped_until=health.until + ahead,
            trips=health.trips,
            cause=health.cause.name,
            reason=watched.reason or "",
        )

    # looking

    def look(self, now: float, alive: Collection[int]) -> list[News]:
        """Take in what the senders say; what changed."""
        uses = self._table.uses()
        news: list[News] = []
        for watched in self.relays:
            news += self._look_at(
                watched, now, {row: RelayUse(*uses[row, watched.index].tolist()) for row in self._rows}, alive
            )
        return news

    def _look_at(
        self, watched: Watched, now: float, used: dict[int, RelayUse], alive: Collection[int]
    ) -> Iterable[News]:
        before, watched.used = watched.used, used
        name = watched.relay.name
        sight = _sight(before, used)
        watched.lately.look(now, sight)
        for row, use in used.items():
            if (
                use.stepped
                and use.stepped != before.get(row, _NOTHING).stepped
                and watched.stepped.step(now, use.stepped)
            ):
                watched.changed = True
                yield News(name, "stepped", f"it broke a better mode: {MODES[watched.stepped.mode]}")
            if use.close_count and (now > watched.close_until or use.close_count < watched.close_count):
                watched.close_count, watched.close_until, watched.changed = use.close_count, now + CLOSED_S, True
        if watched.removed:
            return
        trier = used.get(watched.probe, _NOTHING)
        if watched.stepped.look(now, trier.mode, trier.stepped):
            watched.changed = True
            if watched.stepped.trial:
                watched.probe = self._prober(watched, alive)
        if watched.health.state is RelayState.PROBING and watched.probe not in alive:
            watched.probe = self._prober(watched, alive)
        if not watched.health.look(now, sight):
            return
        watched.changed = True
        match watched.health.state:
            case RelayState.TRIPPED:
                watched.reason = self._words_of(watched)
                yield News(name, "tripped", watched.reason, watched.health.until - now)
            case RelayState.PROBING:
                watched.probe = self._prober(watched, alive)
                yield News(name, "probing", watched.reason)
            case _:
                watched.reason = None
                yield News(name, "up", None)

    def _prober(self, watched: Watched, alive: Collection[int]) -> int:
        """Who makes a probe or a trial: a sender that has work for the relay, another one each time."""
        able = [row for row in self._rows if row in alive and self.known[row] > watched.index]
        able = [row for row in able if row in watched.workers] or able or self._rows
        later = [row for row in able if row > watched.probe]
        return later[0] if later else able[0]

    def _words_of(self, watched: Watched) -> str:
        """Why it tripped, in the words that senders noted last."""
        relay, blames = watched.relay, watched.health.cause is Cause.BLAMES
        texts = [f for f in self._faults.read() if f.text.startswith(f"relay `{relay.name}`")]
        texts = [f for f in texts if (" blames " in f.text) is blames] or texts
        if texts:
            return max(texts, key=lambda fault: fault.last_ns).text
        return f"relay `{relay.name}` ({relay.host}:{relay.port}) {'blames us' if blames else 'cannot be reached'}"

    # sharing out

    def share(self, now: float, work: Mapping[int, Collection[int]]) -> None:
        """Publish allowances for what senders have to do: `work`: row -> relays that its leases may use."""
        basis = self._basis(work, now)
        if basis == self._shared:
            return  # ten times a second nothing has changed
        wanted: dict[int, list[int]] = {row: [] for row in self._rows}
        for watched in self.relays:
            watched.workers = frozenset(row for row in self._rows if watched.index in work.get(row, ()))
            shares = self._wanted(watched)
            for row in self._rows:
                wanted[row].append(shares.get(row, 0))
        for row in self._rows:
            wanted[row] = capped(wanted[row], self._most)
        for watched in self.relays:
            self._publish(watched, now, {row: wanted[row][watched.index] for row in self._rows})
        reached = all(w.allowed == w.target and not w.lowered for w in self.relays)
        self._shared = self._basis(work, now) if reached else ()

    def _basis(self, work: Mapping[int, Collection[int]], now: float) -> tuple[object, ...]:
        """All that allowances and ceilings are computed from."""
        of_relays = tuple(
            (w.limit, w.health.state, w.probe, w.stepped.mode, w.stepped.trial, w.removed, w.closes_at(now))
            for w in self.relays
        )
        of_rows = tuple((row, self.known[row], frozenset(work.get(row, ()))) for row in self._rows)
        return of_relays, of_rows

    def _wanted(self, watched: Watched) -> dict[int, int]:
        """What each sender is to have of a relay, as if nobody held anything yet."""
        if watched.health.state is RelayState.PROBING:
            rows = [watched.probe]
        else:
            # Who holds connections comes first, so that a share of one does not wander. Idle, it is everybody's.
            rows = sorted(watched.workers or self._rows, key=lambda row: (not watched.allowed.get(row), row))
        rows = [row for row in rows if self.known.get(row, 0) > watched.index]
        return dict(zip(rows, allowances(watched.limit, len(rows)), strict=True)) if rows else {}

    def _publish(self, watched: Watched, now: float, wanted: dict[int, int]) -> None:
        watched.target = wanted
        held = {row: self._held(watched, row) for row in self._rows}
        given = next_allowances(watched.limit, watched.allowed, held, wanted)
        window = 1 if watched.health.state is RelayState.PROBING else 0
        for row, n in given.items():
            had = watched.allowed.get(row, 0)
            if n < had:
                watched.lowered[row] = (now, max(had, watched.lowered.get(row, (0.0, 0))[1]))
            watched.allowed[row] = n
            ceiling = watched.stepped.ceiling(tries=row == watched.probe)
            words = (n, watched.health.state, ceiling, window, watched.closes_at(now))
            if watched.published.get(row) != words:
                watched.published[row] = words
                self._table.allow(row, watched.index, *words)

    def _held(self, watched: Watched, row: int) -> int:
        use = self._table.use(row, watched.index)
        held = use.connections + use.opening
        if row in watched.lowered:
            when, before = watched.lowered[row]
            if not self._seen(row, when):
                return max(held, before)
            del watched.lowered[row]
        return held


def _sight(before: Mapping[int, RelayUse], now: Mapping[int, RelayUse]) -> Sight:
    """The sum over senders of what happened between two looks. A counter that went back is a new process's."""
    counted = dict.fromkeys(("failures", "refusals", "accepted", "blamed", "throttled"), 0)
    for row, use in now.items():
        last = before.get(row, _NOTHING)
        for name in counted:
            count, then = getattr(use, name), getattr(last, name)
            counted[name] += count - then if count >= then else count
    return Sight(sum(use.connections for use in now.values()), **counted)
