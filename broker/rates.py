"""Who gets how many tokens, and when: the table of owners and leases that turns limits into grants.

Pure: monotonic times in ns come in, slices to push come out; nothing here sleeps, reads a clock or touches shared
memory. The limits of one owner are the law of `broker/rate_windows.py`; here they are applied to leases together.

Invariants
- A slice is charged to every window its lease falls under before it is returned from `tick`, and so before anybody can
  publish it. What is returned goes back into every window it was charged to.
- No slice reaches further than REACH_NS ahead of the tick that made it.
- Tokens of an owner are shared among its leases in proportion to what they still want, very small wants counting
  for a little more. What rounding withholds from a
  lease is remembered, so that each gets its share in the end, however small.
- A lease that sits on tokens that have lapsed gets no more until it says what became of them: a stopped process ties
  up the share of one slice, and not the bucket.
- Under a gap one lease at a time has the turn, of all its owners that have one, or of none: nobody holds one turn while
  waiting for another.
- A lease on a pool has several routes. Each slice goes through one, which `broker/pool_balance.py` chooses, and falls
  under that relay's windows. Slices are used up in their order, so what became of each is known up to what was both
  spent and returned between two looks; there each relay counts as much as it can have been.
- A tick costs as much as there are leases and owners, not their product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from broker.pool_balance import Balance
from broker.rate_leases import Grant, PacedLease, Route
from broker.rate_sharing import date, divide
from broker.rate_windows import RateLike, Windows
from shm.files.windows import WindowFile

__all__ = ["Grant", "Rates", "Route"]

_PASSES = 3  # rounds of sharing per tick: what one owner holds back from a lease, another lease may use
_TURNS = 4  # slices that a pool's lease may get per tick, each for the relay whose turn it is
_MANY = 1 << 62


class Rates:
    """All owners and leases of an engine.

    most    (lease, relay) -> how many tokens a lease may be given for a relay of a pool now; 0 = it does not work
    """

    def __init__(self, most: Callable[[int, int], int] | None = None) -> None:
        self._most = most or (lambda _lease, _relay: _MANY)
        self._owners: dict[str, Windows] = {}
        self._leases: dict[int, PacedLease] = {}
        self._under: dict[Windows, set[PacedLease]] = {}
        self._balances: dict[str, Balance] = {}
        self._ended: list[PacedLease] = []
        self._ticks = 0

    # ---- owners

    def add_owner(self, owner: str, rate: RateLike, file: WindowFile, now: int) -> None:
        """Begin with an owner ("campaign-7", "relay-default"), whose past is what `file` told when it was opened."""
        assert owner not in self._owners, owner
        windows = self._owners[owner] = Windows(owner, rate, file, now)
        self._under[windows] = set()

    def drop_owner(self, owner: str, now: int) -> WindowFile:
        """Forget an owner whose leases are closed; returns its file, settled, for the caller to close."""
        windows = self._owners[owner]
        assert not self._under[windows], f"`{owner}` has leases"
        self._settle(now)
        del self._owners[owner], self._under[windows]
        self._balances.pop(owner, None)
        return windows.file

    def has_owner(self, owner: str) -> bool:
        """Return whether the owner is in the table."""
        return owner in self._owners

    def set_rate(self, owner: str, rate: RateLike, now: int) -> None:
        """Change an owner's limits; they hold for every grant from the next tick on."""
        self._owners[owner].set_rate(rate, now)

    def lasting(self, owner: str) -> bool:
        """Return whether there is a file behind the owner's windows."""
        return self._owners[owner].file.lasting

    def rehouse(self, owner: str, file: WindowFile) -> None:
        """Give an owner that had no file one; set its rate next. What is out of it stays out."""
        windows = self._owners[owner]
        file.grant(windows.file.outstanding)
        windows.file = file

    def needs_grants(self, owners: Iterable[str]) -> bool:
        """Return whether a lease under these owners must spend grants: any of them has a window or a gap."""
        return any(self._owners[owner].limited for owner in owners)

    def binding(self, owner: str, now: int) -> dict[str, Any] | None:
        """Return the limit that keeps leases of the owner waiting, as of the last tick, or None.

        {"name": "rate.per_minute", "value": 5000, "until_ns": monotonic time when it lets an attempt through}
        """
        windows = self._owners.get(owner)
        if windows is None or not any(lease.wanted > lease.granted for lease in self._under[windows]):
            return None
        return windows.binding(now)

    def due_reserves(self) -> list[WindowFile]:
        """Return the files that need a new reserve: `reserve(...)` each here, then `sync()` each in a thread."""
        return [windows.file for windows in self._owners.values() if windows.file.needs_reserve()]

    # ---- leases

    def open_lease(self, lease: int, owners: Sequence[str], now: int, routes: Sequence[Route] = ()) -> None:
        """Begin with a lease, which falls under these owners as long as it lives.

        routes   relays of a pool, of which each slice uses one; the first owner's leases are balanced together
        """
        assert lease not in self._leases, lease
        made = PacedLease(lease, [self._owners[owner] for owner in owners], now)
        made.routes = {route.relay: self._owners[route.owner] for route in routes}
        made.weights = {route.relay: route.weight for route in routes}
        if routes:
            made.balance = self._balances.setdefault(owners[0], Balance())
        self._leases[lease] = made
        for windows in made.all_owners():
            self._under[windows].add(made)

    def observe(self, lease: int, spent: int, returned: int, now: int, spent_ns: int = 0) -> None:
        """Take note of a lease's totals as read at `now`.

        spent_ns  when its last attempt was made, as the actor says; 0 = it does not say
        """
        known = self._leases[lease]
        assert known.spent <= spent, "spent only grows"
        assert known.returned <= returned, "returned only grows"
        assert spent + returned <= known.granted, f"lease {lease} used more than it was granted"
        known.told = (spent, returned, min(spent_ns or now, now))

    def want(self, lease: int, n: int) -> None:
        """Take note of how many tokens a lease has asked for in all: its `wanted` word, not what it lacks now."""
        self._leases[lease].wanted = n

    def granted(self, lease: int) -> int:
        """Return the tokens granted to a lease in all."""
        return self._leases[lease].granted

    def owes(self, lease: int) -> bool:
        """Return whether a lease has tokens of which it is not known what became of them."""
        known = self._leases[lease]
        return known.granted > known.spent + known.returned

    def withdraw(self, lease: int, n: int, now: int) -> None:
        """Take back the last slice, of `n`, which could not be published (its ring was full)."""
        self._leases[lease].withdraw(n, now)

    def close_lease(self, lease: int, spent: int, returned: int) -> None:
        """End a lease. What it was granted and is neither spent nor returned counts as spent.

        That is meant for a dead holder. For a lease that was given back, pass returned = granted - spent: nothing of
        it can be spent any more.
        """
        known = self._leases.pop(lease)
        spent = max(spent, known.spent)
        returned = min(max(returned, known.returned), known.granted - spent)
        known.told = (known.granted - returned, returned, 0)
        self._ended.append(known)
        for windows in known.all_owners():
            self._under[windows].discard(known)

    @property
    def active(self) -> bool:
        """Return whether a tick has anything to do: a lease lacks tokens or has some out, or an end is not settled."""
        return bool(self._ended) or any(
            lease.wanted > lease.granted or lease.granted > lease.spent + lease.returned
            for lease in self._leases.values()
        )

    # ---- the tick

    def tick(self, now: int) -> list[Grant]:
        """Settle what was observed and grant what may be granted; the caller pushes what it gets at once."""
        self._settle(now)
        self._ticks += 1
        lacking = {lease: n for lease in self._leases.values() if (n := lease.lacks(now))}
        for windows in self._owners.values():
            windows.bound = None
        if not lacking:
            return []
        for windows in dict.fromkeys(windows for lease in lacking for windows in lease.all_owners()):
            windows.refill(now)
        grants: list[Grant] = []
        for _ in range(_TURNS):
            full = self._round(lacking, now, grants)
            lacking = {lease: n for lease in full if (n := lease.lacks(now))}
            if not lacking:
                break
        return grants

    def _round(self, lacking: dict[PacedLease, int], now: int, grants: list[Grant]) -> list[PacedLease]:
        """Grant each of these leases one slice at most; returns pool leases that got all of their turn."""
        offered = self._route(lacking, now)
        members: dict[Windows, list[PacedLease]] = {}
        for lease in lacking:
            for windows in lease.owners:
                members.setdefault(windows, []).append(lease)
        self._pass_turns(members, lacking, now)
        given = self._share(lacking, members, now)
        grants += self._grant(given, now)
        for lease, n in offered.items():
            if n > given.get(lease, 0):
                lease.balance.charge(lease.relay, given.get(lease, 0) - n, lease.weights[lease.relay])
        return [lease for lease, n in offered.items() if given.get(lease, 0) == n]

    def _settle(self, now: int) -> None:
        told = [lease for lease in (*self._leases.values(), *self._ended) if lease.told is not None]
        # In the order of their last attempts: a window's time never goes back, so a later one would hold up the rest.
        for lease in sorted(told, key=lambda lease: lease.told[2] or now if lease.told else 0):
            assert lease.told is not None
            spent, returned, last_ns = lease.told
            lease.told = None
            if (spent, returned) != (lease.spent, lease.returned):
                lease.settle(now, spent, returned, last_ns or now)
        self._ended.clear()

    def _route(self, lacking: dict[PacedLease, int], now: int) -> dict[PacedLease, int]:
        """Choose the relay of each pool lease's next slice; a lease none of whose relays works lacks nothing.

        Returns what the balances were charged for each.
        """
        offered: dict[PacedLease, int] = {}
        pooled = [lease for lease in lacking if lease.routes]
        for lease in pooled:
            lease.balance.forgive(lease.weights)
        for lease in pooled:
            most = {relay: self._most(lease.number, relay) for relay in lease.routes}
            works = [relay for relay, n in most.items() if n > 0]
            able = [relay for relay in works if (room := lease.routes[relay].room(now)[0]) is None or room > 0]
            if not works:
                del lacking[lease]
                continue
            relay = lease.balance.choose(able or works)
            lease.take(relay)
            n = lacking[lease] = min(lacking[lease], most[relay], lease.balance.turn)
            lease.balance.charge(relay, n, lease.weights[relay])
            offered[lease] = n
        return offered

    def _pass_turns(self, members: dict[Windows, list[PacedLease]], lacking: dict[PacedLease, int], now: int) -> None:
        """Let turns go that are over, and give free ones to the lease that waited longest."""
        free = set()
        for windows in [w for w, leases in self._under.items() if leases and w.has_gap]:
            holder, here = windows.holder, members.get(windows, [])
            others = any(lease is not holder for lease in here)
            wanted = holder in lacking and windows in holder.owners
            if windows.hand_over(now, wanted=wanted, others=others):
                free.add(windows)
        for lease in sorted(lacking, key=lambda lease: lease.turn_ns):
            turns = [w for w in lease.owners if w.has_gap]
            if turns and all(w in free or w.holder is lease for w in turns) and not lease.has_turn():
                lease.turn_ns = now
                for windows in turns:
                    windows.holder, windows.run_ns = lease, now
                    free.discard(windows)

    def _may_have(self, lease: PacedLease, members: dict[Windows, list[PacedLease]], now: int) -> bool:
        """Return whether it has the turn, and is not to let it run out since others wait for it."""
        if not lease.has_turn():
            return False
        for windows in lease.owners:
            if windows.has_gap and windows.run_over(now):
                return len(members[windows]) == 1  # nobody but this one
        return True

    def _share(
        self, lacking: dict[PacedLease, int], members: dict[Windows, list[PacedLease]], now: int
    ) -> dict[PacedLease, int]:
        """Divide the room of all owners; no owner's is exceeded by what its leases get together."""
        given: dict[PacedLease, int] = {}
        rooms: dict[Windows, int] = {}
        for windows, under in members.items():
            room, name = windows.room(now)
            asked = sum(lacking[lease] for lease in under)
            windows.bound = name if room is not None and room < asked else windows.bound
            rooms[windows] = asked if room is None else room
        able = {lease: n for lease, n in lacking.items() if self._may_have(lease, members, now)}
        for turn in range(_PASSES):
            asked_now = {lease: n - given.get(lease, 0) for lease, n in able.items() if n > given.get(lease, 0)}
            got = divide(asked_now, rooms, credit=turn == 0)
            if not got:
                break
            for lease, n in got.items():
                given[lease] = given.get(lease, 0) + n
                for windows in lease.owners:
                    rooms[windows] -= n
        return given

    def _grant(self, given: dict[PacedLease, int], now: int) -> list[Grant]:
        """Date and charge what each lease gets. Leases take turns at being first, since early dates are better ones."""
        order = sorted(given, key=lambda lease: lease.number)
        first = self._ticks % len(order) if order else 0
        grants = []
        for lease in (*order[first:], *order[:first]):
            grant = date(lease, given[lease], now)
            if grant is not None:
                last_ns = grant.first_ns + (grant.n - 1) * grant.step_ns
                for windows in lease.owners:
                    windows.charge(grant.n, last_ns)
                lease.grant(grant.n, last_ns)
                grants.append(grant)
            if lease.routes and (less := given[lease] - (grant.n if grant is not None else 0)):
                lease.balance.charge(lease.relay, -less, lease.weights[lease.relay])
        return grants
