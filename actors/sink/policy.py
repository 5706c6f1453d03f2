"""Which recipients the rehearsal server refuses, defers or drops, and at which point of the conversation.

Pure apart from its memory of who was here before. Its clock is given to it; it knows no socket.

Invariants
- The same seed and the same address always get the same fate at the first attempt, in any process.
- A recipient who is deferred, throttled or dropped by chance, or by a magic address ending in `-once`, is accepted from
  the second attempt on; one who is bounced by chance never is.
- Its memory is bounded: of more than a million recipients who must be remembered, the oldest are strangers again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

from actors.sink.magic import GREYLIST_NAME, GREYLISTED, MAGIC, MAGIC_BEGINNINGS, MAGIC_RE, Fate, scripted

__all__ = ["GREYLIST_S", "Policy", "Shares"]

GREYLIST_S = 10.0  # what `greylist@` waits where no greylisting was asked for: a person can watch it pass
REMEMBERED = 1_000_000  # recipients; about 150 MB if so many are refused first

_BY_NAME = {magic.name.encode(): magic.fate for magic in MAGIC}
_BOUNCE, _DEFER, _THROTTLE = _BY_NAME[b"bounce"], _BY_NAME[b"defer"], _BY_NAME[b"throttle"]
_DROPS = (_BY_NAME[b"drop-before"], _BY_NAME[b"drop-during"], _BY_NAME[b"drop-after"])
_GREYLIST = GREYLIST_NAME.encode()


class Shares(NamedTuple):
    """Shares of recipients, 0..1, together at most 1, who meet a fate by chance."""

    bounce: float = 0.0
    defer: float = 0.0
    throttle: float = 0.0
    drop: float = 0.0


NOBODY = Shares()


class Policy:
    """Fates of recipients for one run of the sink.

    shares      who is not simply accepted
    seed        changes who they are
    greylist_s  a recipient is deferred until so long after its first attempt; 0 = nobody is
    clock       seconds, for greylisting
    """

    def __init__(
        self, shares: Shares = NOBODY, seed: int = 0, greylist_s: float = 0.0, clock: Callable[[], float] = float
    ) -> None:
        self._below: list[tuple[int, tuple[Fate, ...]]] = []
        total = 0.0
        for share, fates in zip(shares, ((_BOUNCE,), (_DEFER,), (_THROTTLE,), _DROPS), strict=True):
            total += share
            self._below.append((int(total * 2**64), fates))
        self._by_chance = total > 0
        self._key = seed.to_bytes(8, "little", signed=True)
        self._greylist_s = greylist_s
        self._clock = clock
        self._first_s: dict[bytes, float] = {}  # when a recipient was here first, oldest first

    def fate(self, recipient: bytes) -> Fate | None:
        """What happens to this attempt; None = accepted. Remembers the attempt where a later one differs. Hot."""
        if recipient[:3].lower() in MAGIC_BEGINNINGS:
            match = MAGIC_RE.match(recipient)
            if match is not None:
                return self._magic(recipient, match)
        if self._greylist_s and self._greylisted(recipient, self._greylist_s):
            return GREYLISTED
        return self._chance(recipient) if self._by_chance else None

    def _chance(self, recipient: bytes) -> Fate | None:
        lot = int.from_bytes(blake2b(recipient.lower(), digest_size=8, key=self._key).digest(), "little")
        for below, fates in self._below:
            if lot < below:
                fate = fates[lot % len(fates)]
                return fate if fate is _BOUNCE or self._first(recipient, b"chance") else None
        return None

    def _magic(self, recipient: bytes, match: re.Match[bytes]) -> Fate | None:
        name, point, code, enhanced, once = match.groups()
        if once and not self._first(recipient, b"once"):
            return None
        if not name:
            return scripted(point, code, enhanced)
        name = name.lower()
        if name == _GREYLIST and not once and not self._greylisted(recipient, self._greylist_s or GREYLIST_S):
            return None
        return _BY_NAME[name]

    def _greylisted(self, recipient: bytes, wait_s: float) -> bool:
        now_s = self._clock()
        return now_s < self._remember(recipient.lower(), now_s) + wait_s

    def _first(self, recipient: bytes, why: bytes) -> bool:
        """True at the first call for this address, in whatever case."""
        attempt = b"%b %b" % (why, recipient.lower())
        if attempt in self._first_s:
            return False
        self._remember(attempt, 0.0)
        return True

    def _remember(self, what: bytes, now_s: float) -> float:
        """When this was here first: now, if it was not."""
        first_s = self._first_s
        if len(first_s) >= REMEMBERED and what not in first_s:
            del first_s[next(iter(first_s))]
        return first_s.setdefault(what, now_s)
