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
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from broker.rate_windows import REACH_NS, RateLike, Windows
from shm.files.windows import WindowFile
from shm.live.grants import LAPSE_NS

__all__ = ["Grant", "Rates"]

_LEAST = 16  # a lease counts as wanting at least a 16th of what the average one does: one late row is not put off
_PASSES = 3  # rounds of sharing per tick: what one owner holds back from a lease, another lease may use


class Grant(NamedTuple):
    """A slice to push: n attempts at first_ns, first_ns + step_ns, ..., no two closer than gap_ns (0 = none)."""

    lease: int
    n: int
    first_ns: int
    step_ns: int
    gap_ns: int


class _Lease:
    """What a lease was granted and what became of it. Counts grow only.

    told     (spent, returned, last attempt not later than) as last observed, not yet settled with the windows
    slices   (granted up to and with it, when it lapses) of slices not known to be used up
    credits  per owner, tokens that rounding owes it
    """

    __slots__ = ("credits", "granted", "number", "owners", "returned", "slices", "spent", "told", "turn_ns", "wanted")

    def __init__(self, number: int, owners: list[Windows], now_ns: int) -> None:
        self.number = number
        self.owners = owners
        self.granted = self.spent = self.returned = self.wanted = 0
        self.told: tuple[int, int, int] | None = None
        self.slices: deque[tuple[int, int]] = deque()
        self.credits = [0.0] * len(owners)
        self.turn_ns = now_ns

    def lacks(self, now_ns: int) -> int:
        """Return how many tokens it may be given: what it wants beyond what it got; 0 if it sits on lapsed ones."""
        while self.slices and self.slices[0][0] <= self.spent + self.returned:
            self.slices.popleft()
        if self.slices and self.slices[0][1] < now_ns:
            return 0
        return max(0, self.wanted - self.granted)

    def has_turn(self) -> bool:
        """Return whether it is its turn at every owner that grants to one lease at a time."""
        return all(not w.has_gap or w.holder is self for w in self.owners)


class Rates:
    """All owners and leases of an engine."""

    def __init__(self) -> None:
        self._owners: dict[str, Windows] = {}
        self._leases: dict[int, _Lease] = {}
        self._ended: list[_Lease] = []
        self._ticks = 0

    # ---- owners

    def add_owner(self, owner: str, rate: RateLike, file: WindowFile, now: int) -> None:
        """Begin with an owner ("campaign-7", "relay-default"), whose past is what `file` told when it was opened."""
        assert owner not in self._owners, owner
        self._owners[owner] = Windows(owner, rate, file, now)

    def drop_owner(self, owner: str, now: int) -> WindowFile:
        """Forget an owner whose leases are closed; returns its file, settled, for the caller to close."""
        windows = self._owners[owner]
        assert not any(windows in lease.owners for lease in self._leases.values()), f"`{owner}` has leases"
        self._settle(now)
        del self._owners[owner]
        return windows.file

    def has_owner(self, owner: str) -> bool:
        """Return whether the owner is in the table."""
        return owner in self._owners

    def set_rate(self, owner: str, rate: RateLike, now: int) -> None:
        """Change an owner's limits; they hold for every grant from the next tick on."""
        self._owners[owner].set_rate(rate, now)

    def needs_grants(self, owners: Iterable[str]) -> bool:
        """Return whether a lease under these owners must spend grants: any of them has a window or a gap."""
        return any(self._owners[owner].limited for owner in owners)

    def binding(self, owner: str, now: int) -> dict[str, Any] | None:
        """Return the limit that keeps leases of the owner waiting, as of the last tick, or None.

        {"name": "rate.per_minute", "value": 5000, "until_ns": monotonic time when it lets an attempt through}
        """
        windows = self._owners.get(owner)
        if windows is None or not any(
            lease.wanted > lease.granted and windows in lease.owners for lease in self._leases.values()
        ):
            return None
        return windows.binding(now)

    def due_reserves(self) -> list[WindowFile]:
        """Return the files that need a new reserve: `reserve(...)` each here, then `sync()` each in a thread."""
        return [windows.file for windows in self._owners.values() if windows.file.needs_reserve()]

    # ---- leases

    def open_lease(self, lease: int, owners: Iterable[str], now: int) -> None:
        """Begin with a lease, which falls under these owners as long as it lives."""
        assert lease not in self._leases, lease
        self._leases[lease] = _Lease(lease, [self._owners[owner] for owner in owners], now)

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

    def withdraw(self, lease: int, n: int, now: int) -> None:
        """Take back the last slice of `n`, which could not be published (its ring was full)."""
        known = self._leases[lease]
        known.slices.pop()
        known.granted -= n
        for windows in known.owners:
            windows.settle(now, 0, n, now)

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
        for windows in dict.fromkeys(windows for lease in lacking for windows in lease.owners):
            windows.refill(now)
        self._pass_turns(lacking, now)
        return self._grant(self._share(lacking, now), now)

    def _settle(self, now: int) -> None:
        told = [lease for lease in (*self._leases.values(), *self._ended) if lease.told is not None]
        # In the order of their last attempts: a window's time never goes back, so a later one would hold up the rest.
        for lease in sorted(told, key=lambda lease: lease.told[2] or now if lease.told else 0):
            assert lease.told is not None
            spent, returned, last_ns = lease.told
            lease.told = None
            if (spent, returned) == (lease.spent, lease.returned):
                continue
            for windows in lease.owners:
                windows.settle(now, spent - lease.spent, returned - lease.returned, last_ns or now)
            lease.spent, lease.returned = spent, returned
        self._ended.clear()

    def _pass_turns(self, lacking: dict[_Lease, int], now: int) -> None:
        """Let turns go that are over, and give free ones to the lease that waited longest."""
        free = set()
        for windows in dict.fromkeys(w for lease in self._leases.values() for w in lease.owners if w.has_gap):
            holder = windows.holder
            others = any(lease is not holder and windows in lease.owners for lease in lacking)
            if windows.hand_over(now, wanted=holder in lacking, others=others):
                free.add(windows)
        for lease in sorted(lacking, key=lambda lease: lease.turn_ns):
            turns = [w for w in lease.owners if w.has_gap]
            if turns and all(w in free or w.holder is lease for w in turns) and not lease.has_turn():
                lease.turn_ns = now
                for windows in turns:
                    windows.holder, windows.run_ns = lease, now
                    free.discard(windows)

    def _may_have(self, lease: _Lease, lacking: dict[_Lease, int], now: int) -> bool:
        """Return whether it has the turn, and is not to let it run out since others wait for it."""
        if not lease.has_turn():
            return False
        for windows in lease.owners:
            if windows.has_gap and windows.run_over(now):
                return not any(other is not lease and windows in other.owners for other in lacking)
        return True

    def _share(self, lacking: dict[_Lease, int], now: int) -> dict[_Lease, int]:
        """Divide the room of all owners; no owner's is exceeded by what its leases get together."""
        given: dict[_Lease, int] = {}
        rooms: dict[Windows, int] = {}
        for lease in lacking:
            for windows in lease.owners:
                if windows not in rooms:
                    room, name = windows.room(now)
                    asked = sum(n for other, n in lacking.items() if windows in other.owners)
                    windows.bound = name if room is not None and room < asked else None
                    rooms[windows] = asked if room is None else room
        able = {lease: n for lease, n in lacking.items() if self._may_have(lease, lacking, now)}
        for turn in range(_PASSES):
            asked_now = {lease: n - given.get(lease, 0) for lease, n in able.items() if n > given.get(lease, 0)}
            got = _divide(asked_now, rooms, credit=turn == 0)
            if not got:
                break
            for lease, n in got.items():
                given[lease] = given.get(lease, 0) + n
                for windows in lease.owners:
                    rooms[windows] -= n
        return given

    def _grant(self, given: dict[_Lease, int], now: int) -> list[Grant]:
        """Date and charge what each lease gets. Leases take turns at being first, since early dates are better ones."""
        order = sorted(given, key=lambda lease: lease.number)
        first = self._ticks % len(order) if order else 0
        grants = []
        for lease in (*order[first:], *order[:first]):
            grant = _date(lease, given[lease], now)
            if grant is not None:
                last_ns = grant.first_ns + (grant.n - 1) * grant.step_ns
                for windows in lease.owners:
                    windows.charge(grant.n, last_ns)
                lease.granted += grant.n
                lease.slices.append((lease.granted, last_ns + LAPSE_NS))
                grants.append(grant)
        return grants


def _date(lease: _Lease, n: int, now: int) -> Grant | None:
    """Return the slice of up to n tokens that every window of the lease allows and that ends within the reach."""
    gap_ns = max((w.gap_ns for w in lease.owners), default=0)
    while n > 0:
        spans = [w.span_ns(n, now) for w in lease.owners]
        first_ns = max((first for first, _ in spans), default=now)
        last_ns = max((last for _, last in spans), default=now)
        last_ns = max(last_ns, first_ns + (n - 1) * gap_ns)
        step_ns = -(-(last_ns - first_ns) // (n - 1)) if n > 1 else 0
        if first_ns + (n - 1) * step_ns <= now + REACH_NS:
            return Grant(lease.number, n, first_ns, step_ns, gap_ns)
        n = n // 2  # two owners' dates together can pass the reach that each alone keeps
    return None


def _divide(asked: dict[_Lease, int], rooms: dict[Windows, int], *, credit: bool) -> dict[_Lease, int]:
    """Return what each lease gets of what it asked: owner after owner cuts it down, campaigns before relays."""
    got = dict(asked)
    members: dict[Windows, list[tuple[_Lease, int]]] = {}
    for lease in asked:
        for place, windows in enumerate(lease.owners):
            members.setdefault(windows, []).append((lease, place))
    for windows, under in sorted(members.items(), key=lambda item: max(place for _, place in item[1])):
        _cut(got, under, rooms[windows], credit=credit)
    return {lease: n for lease, n in got.items() if n > 0}


def _cut(got: dict[_Lease, int], under: list[tuple[_Lease, int]], room: int, *, credit: bool) -> None:
    """Bring the sum of some leases' tokens down to `room`, each in proportion.

    under   (lease, place of the owner among its owners)
    credit  whether what rounding withholds is remembered, and what it withheld before is made good
    """
    asked = sum(got[lease] for lease, _ in under)
    if asked <= room:
        for lease, place in under:
            lease.credits[place] = 0.0
        return
    weights = {lease: max(float(got[lease]), asked / len(under) / _LEAST) for lease, _ in under if got[lease]}
    each = room / sum(weights.values())
    shares = {
        lease: weights.get(lease, 0.0) * each + (lease.credits[place] if credit else 0.0) for lease, place in under
    }
    left = room
    parts: dict[_Lease, int] = {}
    for lease in sorted(shares, key=lambda lease: -shares[lease]):
        parts[lease] = max(0, min(int(shares[lease]), got[lease], left))
        left -= parts[lease]
    for lease in sorted(shares, key=lambda lease: parts[lease] - shares[lease]):
        extra = min(left, 1, got[lease] - parts[lease])
        parts[lease] += extra
        left -= extra
    for lease, place in under:
        if credit:
            lease.credits[place] = max(-float(asked), min(float(asked), shares[lease] - parts[lease]))
        got[lease] = parts[lease]
