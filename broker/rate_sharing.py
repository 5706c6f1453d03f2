"""How scarce tokens are divided among leases, and dated: the arithmetic of `broker/rates.py`.

Pure functions over leases and windows; the only thing they write down is what rounding owes a lease.
"""

from __future__ import annotations

from broker.rate_leases import Grant, PacedLease
from broker.rate_windows import REACH_NS, Windows

__all__ = ["date", "divide"]

_LEAST = 16  # a lease counts as wanting at least a 16th of what the average one does: one late row is not put off


def date(lease: PacedLease, n: int, now: int) -> Grant | None:
    """Return the slice of up to n tokens that every window of the lease allows and that ends within the reach."""
    gap_ns = max((w.gap_ns for w in lease.owners), default=0)
    while n > 0:
        spans = [w.span_ns(n, now) for w in lease.owners]
        first_ns = max((first for first, _ in spans), default=now)
        last_ns = max((last for _, last in spans), default=now)
        last_ns = max(last_ns, first_ns + (n - 1) * gap_ns)
        step_ns = -(-(last_ns - first_ns) // (n - 1)) if n > 1 else 0
        if first_ns + (n - 1) * step_ns <= now + REACH_NS:
            return Grant(lease.number, n, first_ns, step_ns, gap_ns, lease.relay)
        n = n // 2  # two owners' dates together can pass the reach that each alone keeps
    return None


def divide(asked: dict[PacedLease, int], rooms: dict[Windows, int], *, credit: bool) -> dict[PacedLease, int]:
    """Return what each lease gets of what it asked: owner after owner cuts it down, campaigns before relays."""
    got = dict(asked)
    members: dict[Windows, list[tuple[PacedLease, int]]] = {}
    for lease in asked:
        for place, windows in enumerate(lease.owners):
            members.setdefault(windows, []).append((lease, place))
    for windows, under in sorted(members.items(), key=lambda item: max(place for _, place in item[1])):
        _cut(got, windows, [lease for lease, _ in under], rooms[windows], credit=credit)
    return {lease: n for lease, n in got.items() if n > 0}


def _cut(got: dict[PacedLease, int], windows: Windows, under: list[PacedLease], room: int, *, credit: bool) -> None:
    """Bring the sum of some leases' tokens down to `room`, each in proportion.

    windows, under   an owner, and the leases under it
    credit  whether what rounding withholds is remembered, and what it withheld before is made good
    """
    asked = sum(got[lease] for lease in under)
    if asked <= room:
        for lease in under:
            lease.credits[windows] = 0.0
        return
    weights = {lease: max(float(got[lease]), asked / len(under) / _LEAST) for lease in under if got[lease]}
    each = room / sum(weights.values())
    shares = {
        lease: weights.get(lease, 0.0) * each + (lease.credits.get(windows, 0.0) if credit else 0.0) for lease in under
    }
    left = room
    parts: dict[PacedLease, int] = {}
    for lease in sorted(shares, key=lambda lease: -shares[lease]):
        parts[lease] = max(0, min(int(shares[lease]), got[lease], left))
        left -= parts[lease]
    for lease in sorted(shares, key=lambda lease: parts[lease] - shares[lease]):
        extra = min(left, 1, got[lease] - parts[lease])
        parts[lease] += extra
        left -= extra
    for lease in under:
        if credit:
            lease.credits[windows] = max(-float(asked), min(float(asked), shares[lease] - parts[lease]))
        got[lease] = parts[lease]
