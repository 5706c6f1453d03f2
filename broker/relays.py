"""The relays as the broker knows them: which are declared, which a campaign may use, how they stand.

Relays are declared in ecm.toml alone, which `ctl reload` reads again. A campaign names one relay or a pool; `of` says
which relays that is. What senders see of them is gathered in `relay_watch`, judged in `relay_health`.

Invariants
- The index of a relay never changes while the engine runs. A removed relay keeps its own, without connections, and
  gets it back when it is declared again; new ones come behind.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from broker import relay_check
from broker.contract.errors import EcmError
from broker.contract.settings import Relay, Settings
from broker.relay_health import Cause
from broker.relay_lately import Said
from broker.relay_watch import News, RelayWatch, Watched
from broker.running import Origin
from broker.store.relays import Learnt
from shm.live.faults import FaultTable
from shm.live.relays import RelayState, RelayTable

__all__ = ["MANY", "Change", "RelayView", "Relays", "Why"]

MANY = 1 << 30  # tokens: no limit
PROBE_TOKENS = 1  # of a pool's campaign, for a relay that is being probed
STATES = {RelayState.UP: "up", RelayState.TRIPPED: "tripped", RelayState.PROBING: "probing"}
GONE_HINT = "declare it in ecm.toml and run `ctl reload`, or cancel the campaign; sending goes on by itself"


class Sends(Protocol):
    """Of a campaign, what decides which relays it may use."""

    @property
    def relay(self) -> str: ...
    @property
    def from_address(self) -> str: ...


@dataclass(slots=True)
class RelayView:
    """What all senders together say of one relay."""

    name: str
    connections: int
    connections_limit: int
    mode: str | None
    state: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Why:
    """Why nothing can be sent, as a campaign's reason has it."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Change:
    """What a reload did to relays, by name."""

    added: list[str]
    changed: list[str]
    removed: list[str]


class Relays:
    """All relays of one start. `now`: a monotonic clock in seconds."""

    def __init__(
        self,
        settings: Settings,
        table: RelayTable,
        faults: FaultTable,
        sender_rows: list[int],
        *,
        now: Callable[[], float],
        seen: Callable[[int, float], bool] = lambda _row, _since: True,
        connections_max: int = MANY,
        room: int = MANY,
    ) -> None:
        self._settings = settings
        self._now = now
        self._room = room
        self._rows = sender_rows
        self.watched = RelayWatch(table, faults, sender_rows, connections_max, seen)
        self.generation = 1
        self._taken = dict.fromkeys(sender_rows, 1)  # row -> generation of the settings that its sender has
        for relay in settings.relays.values():
            self.watched.declare(relay, now())
        for row in sender_rows:
            self.watched.born(row)
        self.share({})

    # declared

    def index(self, name: str) -> int:
        """Place of a relay in the arena's table."""
        return next(w.index for w in self.watched.relays if w.relay.name == name)

    def relay(self, name: str) -> Relay:
        """Settings of one relay. Raises EcmError unknown_relay."""
        if name not in self._settings.relays:
            self._settings.weights(name)
            raise EcmError("unknown_relay", f"`{name}` is a pool, not a relay", field="relay")
        return self._settings.relays[name]

    @property
    def names(self) -> list[str]:
        """Every relay of this start by index, removed ones too."""
        return [watched.relay.name for watched in self.watched.relays]

    def of(self, spec: Sends) -> list[tuple[str, int]]:
        """(relay, weight) of a campaign's relay or pool. Raises EcmError unknown_relay, from_not_allowed."""
        relays = list(self._settings.weights(spec.relay).items())
        for name, _ in relays:
            declared = self._settings.relays[name]
            if not declared.allows_from(spec.from_address):
                raise EcmError(
                    "from_not_allowed",
                    f"relay `{name}` sends for {', '.join(declared.from_domains)} only, not for: {spec.from_address}",
                    field="from",
                    hint="choose another relay, or add the domain to its `from_domains`",
                )
        return relays

    def routes(self, origin: Origin) -> tuple[list[tuple[int, int]], tuple[str, str, str] | None]:
        """[(index, weight)] of a campaign under way, and (code, message, hint) of why it has none.

        Of a pool only what the campaign was launched with: what joins later is for later campaigns.
        """
        try:
            found = self.of(origin)
        except EcmError as error:
            hint = GONE_HINT if error.code == "unknown_relay" else "mend ecm.toml and run `ctl reload`, or cancel it"
            return [], (error.code, error.message, hint)
        mine = [(self.index(name), weight) for name, weight in found if name in origin.launched_with]
        if mine:
            return mine, None
        left = ", ".join(origin.launched_with)
        text = f"no relay of `{origin.relay}` that the campaign was launched with is left: {left}"
        return [], ("unknown_relay", text, GONE_HINT)

    def maps(self) -> dict[str, Any]:
        """Settings of all relays in the order of their places, removed ones too: what senders are told."""
        return {watched.relay.name: watched.relay.to_map() for watched in self.watched.relays}

    def apply(self, settings: Settings) -> Change:
        """Take over other settings. Raises EcmError if there are more new relays than the arena has places for."""
        by_name = {watched.relay.name: watched for watched in self.watched.relays}
        new = [name for name in settings.relays if name not in by_name]
        if len(by_name) + len(new) > self._room:
            raise EcmError(
                "settings_invalid",
                f"more relays since the start than there is room for: {len(by_name) + len(new)} of {self._room}",
                field=f"relay.{new[-1]}",
                hint="`ctl stop` and `ctl start` make room",
            )
        added: list[str] = []
        changed: list[str] = []
        for name, relay in settings.relays.items():
            watched = by_name.get(name)
            if watched is None:
                self.watched.declare(relay, self._now())
                added.append(name)
            elif watched.removed or watched.relay != relay:
                (added if watched.removed else changed).append(name)
                self._replace(watched, relay)
        removed = [w for name, w in by_name.items() if name not in settings.relays and not w.removed]
        for watched in removed:
            watched.removed = True
        self._settings = settings
        self.generation += bool(added or changed or removed)
        return Change(added, changed, [watched.relay.name for watched in removed])

    def _replace(self, watched: Watched, relay: Relay) -> None:
        old, watched.relay, watched.removed = watched.relay, relay, False
        # Another server, or other credentials: what was held against the old ones is not the new ones' past.
        if (old.host, old.port, old.tls, old.username, old.password) != (
            relay.host, relay.port, relay.tls, relay.username, relay.password,
        ):  # fmt: skip
            self.watched.forget(watched, self._now())

    # told

    def born(self, row: int) -> None:
        """The sender in `row` starts with `maps` as they are now."""
        self._taken[row] = self.generation
        self.watched.born(row)

    def died(self, row: int) -> None:
        """The sender in `row` is dead."""
        self.watched.died(row)

    def told(self, row: int, generation: int) -> None:
        """The sender in `row` says that it has taken over the settings of a generation."""
        if generation == self.generation and row in self._taken:
            self.born(row)

    def deaf(self) -> set[int]:
        """Rows of senders that have not taken over the settings as they are now."""
        return {row for row, taken in self._taken.items() if taken < self.generation}

    # standing

    def look(self, alive: Collection[int]) -> list[News]:
        """Take in what senders say. `alive`: rows of senders that may be given leases."""
        return self.watched.look(self._now(), alive)

    def share(self, work: Mapping[int, Collection[int]]) -> None:
        """Share connections out among senders: `work`: row -> relays that its leases may use."""
        self.watched.share(self._now(), work)

    def knows(self, row: int, index: int) -> bool:
        """Whether the sender in `row` has been told of a relay."""
        return self.watched.known.get(row, 0) > index

    def open_to(self, row: int) -> frozenset[int]:
        """Relays that the sender in `row` may open connections to; it can do nothing with a lease of any other."""
        mine = (w for w in self.watched.relays if self.knows(row, w.index) and not w.removed and w.may_join(row))
        return frozenset(watched.index for watched in mine)

    def tokens(self, row: int, index: int) -> int:
        """Messages that a lease of a pool at this sender may be granted for a relay now."""
        watched = self.watched.relays[index]
        if watched.removed or not watched.may_join(row):
            return 0
        return PROBE_TOKENS if watched.down else MANY

    def why_down(self, indexes: Collection[int]) -> Why | None:
        """Why none of these relays works; None if one does."""
        relays = [self.watched.relays[index] for index in indexes]
        if not relays or not all(watched.down for watched in relays):
            return None
        watched = max(relays, key=lambda w: w.health.since)
        left_s = max(0, round(watched.health.until - self._now()))
        if watched.health.cause is Cause.BLAMES:
            again = f"it is tried again within {left_s} s" if left_s else "it is being tried again"
            return Why(
                "relay_refused", watched.reason or "", f"mend what it says; {again}, and sending goes on by itself"
            )
        hint = "`ctl relay check` shows what it says; sending goes on when it answers"
        return Why("relay_unreachable", watched.reason or "", hint)

    def said(self, index: int) -> Said:
        """What a relay said to all senders in the last minutes."""
        return self.watched.relays[index].lately.said(self._now())

    def down(self, indexes: Collection[int]) -> str | None:
        """Why none of these relays works, in the words of one; None if one does."""
        why = self.why_down(indexes)
        return None if why is None else why.message

    def views(self) -> list[RelayView]:
        """Each declared relay over all senders."""
        return [self._view(watched) for watched in self.watched.relays if not watched.removed]

    def _view(self, watched: Watched) -> RelayView:
        connections = sum(use.connections for use in watched.used.values())
        state = STATES[watched.health.state]
        return RelayView(
            watched.relay.name, connections, watched.relay.connections, watched.mode, state, watched.reason
        )

    # kept

    def take_up(self, learnt: Collection[Learnt], engine_s: float) -> None:
        """Take up what an earlier start learnt. `engine_s`: engine time now; what is over by then is forgotten."""
        for each in learnt:
            watched = next((w for w in self.watched.relays if w.relay.name == each.name), None)
            if watched is not None and (watched.relay.host, watched.relay.port) == (each.host, each.port):
                self.watched.restore(watched, each, self._now() - engine_s)

    def learnt(self, engine_s: float) -> list[Learnt]:
        """What was learnt since this was asked last, to be kept."""
        ahead = engine_s - self._now()
        changed = [watched for watched in self.watched.relays if watched.changed]
        for watched in changed:
            watched.changed = False
        return [self.watched.learnt(watched, ahead) for watched in changed]

    # spoken with

    async def reachable(self, relays: list[tuple[str, int]]) -> None:
        """Speak with the relays of a campaign before its launch. Raises what the last one said if none answers."""
        results = await asyncio.gather(*(self.check(name) for name, _ in relays))
        failures = [result["error"] for result in results if not result["ok"]]
        if len(failures) == len(relays):
            raise EcmError.from_map(failures[-1])

    async def check(self, name: str) -> dict[str, Any]:
        """What a relay offers. Raises EcmError unknown_relay."""
        return await relay_check.check(self.relay(name))
