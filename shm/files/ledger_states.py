"""The states of a recipient, the only ways between them, and how a row packs into two words.

```
word A   bits  0-3 state | 4-5 zero | 6 again | 7 sticky | 8-15 attempts
               16-31 reply code | 32-55 enhanced a.b.c | 56-63 relay
word B   bits  0-31 next attempt (s) | 32-63 until the row concludes: its first attempt (s); then: when it did (s)
```

Invariants:

- a row changes state only along TRANSITIONS, written by the writer named there;
- B is stored before A, each as one aligned 8-byte store: A makes a row true, and no reader sees half a word;
- attempts counts what was handed to a transport: it grows at SENDING, and stays at 255 from there on;
- sticky means that an earlier attempt may have been accepted, again that another one followed it: a second copy may
  exist. Once set they are never cleared. A sticky row that is mailed no more is UNCERTAIN, not SUPPRESSED or CANCELLED.

Values only: nothing here opens a file or reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

__all__ = [
    "AGAIN",
    "ATTEMPTS_MAX",
    "CONCLUDED",
    "STATE_MASK",
    "STICKY",
    "TRANSITIONS",
    "Counts",
    "Row",
    "States",
    "Writer",
    "pack_a",
    "pack_reply",
    "unpack_a",
]


class States(IntEnum):
    """What is known of one recipient. The numbers are in files: they never change."""

    PENDING = 0  # never attempted
    CLAIMED = 1  # may be attempted from the next sync on
    SENDING = 2  # MAIL handed over, no final reply yet
    SENT = 3  # the relay took it
    DEFERRED = 4  # to be attempted (again) at `next`
    BOUNCED = 5  # refused for good
    FAILED = 6  # given up, or cannot be composed
    SUPPRESSED = 7  # asked not to be mailed
    CANCELLED = 8  # the campaign was cancelled first
    UNCERTAIN = 9  # may have been accepted
    DUPLICATE = 10  # an earlier row has the same address: not part of the audience


STATE_MASK: Final = 0x0F
STICKY: Final = 0x80
AGAIN: Final = 0x40
ATTEMPTS_MAX: Final = 0xFF
CODE_MAX: Final = 0xFFFF
BYTE_MAX: Final = 0xFF

CONCLUDED: Final = frozenset(
    {States.SENT, States.BOUNCED, States.FAILED, States.SUPPRESSED, States.CANCELLED, States.UNCERTAIN}
)


class Writer(Enum):
    """Who may write a transition."""

    LOADER = "loader"  # at the snapshot, before anybody leases the shard
    HOLDER = "holder"  # the sender that holds the lease
    BROKER = "broker"  # of an idle shard, or after its holder's death


_P, _C, _S, _D = States.PENDING, States.CLAIMED, States.SENDING, States.DEFERRED
_U, _F = States.UNCERTAIN, States.FAILED
_LOADER, _HOLDER, _BROKER = Writer.LOADER, Writer.HOLDER, Writer.BROKER

TRANSITIONS: Final[frozenset[tuple[States, States, Writer]]] = frozenset(
    {
        (_P, States.DUPLICATE, _LOADER),
        (_P, States.SUPPRESSED, _LOADER),
        # needed within two sync intervals; word B untouched
        (_P, _C, _HOLDER),
        (_D, _C, _HOLDER),
        # MAIL handed over; attempts + 1
        (_C, _S, _HOLDER),
        # return, pause, process death: PENDING if attempts is 0 and sticky is clear
        (_C, _P, _HOLDER),
        (_C, _D, _HOLDER),
        (_C, _P, _BROKER),
        (_C, _D, _BROKER),
        # the reply; DEFERRED also for a connection lost where it cannot have been accepted
        (_S, States.SENT, _HOLDER),
        (_S, States.BOUNCED, _HOLDER),
        (_S, _D, _HOLDER),
        (_S, _F, _HOLDER),
        # what would be DEFERRED under a cancel
        (_S, States.CANCELLED, _HOLDER),
        # may have been accepted; after power loss CLAIMED too
        (_S, _U, _HOLDER),
        (_S, _U, _BROKER),
        (_C, _U, _BROKER),
        # policy `resend`, sticky clear: DEFERRED + sticky, due now; written in the same store as UNCERTAIN would be
        (_U, _D, _HOLDER),
        (_U, _D, _BROKER),
        # an unsubscribe, at lease and before each write
        (_P, States.SUPPRESSED, _HOLDER),
        (_C, States.SUPPRESSED, _HOLDER),
        (_D, States.SUPPRESSED, _HOLDER),
        # one that came while the campaign had ended, at its retry
        (_P, States.SUPPRESSED, _BROKER),
        (_D, States.SUPPRESSED, _BROKER),
        # cancel
        (_P, States.CANCELLED, _HOLDER),
        (_C, States.CANCELLED, _HOLDER),
        (_D, States.CANCELLED, _HOLDER),
        (_P, States.CANCELLED, _BROKER),
        (_C, States.CANCELLED, _BROKER),
        (_D, States.CANCELLED, _BROKER),
        # the same two of a sticky row: it may have been accepted
        (_C, _U, _HOLDER),
        (_D, _U, _HOLDER),
        (_D, _U, _BROKER),
        # given up; CLAIMED: the message cannot be composed, or it is a retry that came too late
        (_D, _F, _HOLDER),
        (_C, _F, _HOLDER),
        (_D, _F, _BROKER),
        # poison: the row that crashed its sender
        (_C, _F, _BROKER),
        (_S, _F, _BROKER),
        # `campaign retry`; UNCERTAIN goes the way of `resend` above
        (_F, _D, _BROKER),
    }
)


class Row(NamedTuple):
    """What word A says. enhanced is (0, 0, 0) and code 0 where no reply gave one; relay is an index (0-255)."""

    state: States
    attempts: int
    sticky: bool
    code: int
    enhanced: tuple[int, int, int]
    relay: int


@lru_cache(4096)
def pack_reply(code: int, enhanced: tuple[int, int, int] | None, relay: int) -> int:
    """Bits 16-63 of word A: the reply and the relay that gave it, each clamped to its field.

    code       SMTP reply code, 0 for none; beyond 65535 becomes 65535
    enhanced   RFC 3463 status or None; a part beyond 255 becomes 255 (such details exist: 5.7.512)
    relay      index in the relay table, 0-255
    Relays repeat themselves, so the answers are kept: 0.1 us.
    """
    first, second, third = enhanced or (0, 0, 0)
    return (
        _clamp(code, CODE_MAX) << 16
        | _clamp(first, BYTE_MAX) << 32
        | _clamp(second, BYTE_MAX) << 40
        | _clamp(third, BYTE_MAX) << 48
        | _clamp(relay, BYTE_MAX) << 56
    )


def pack_a(
    state: int,
    attempts: int = 0,
    sticky: bool = False,
    code: int = 0,
    enhanced: tuple[int, int, int] | None = None,
    relay: int = 0,
) -> int:
    """Word A of a row, every field clamped."""
    bits = States(state) | _clamp(attempts, ATTEMPTS_MAX) << 8 | pack_reply(code, enhanced, relay)
    return bits | STICKY if sticky else bits


def unpack_a(word: int) -> Row:
    """What a word A says. Raises ValueError for a state that does not exist."""
    return Row(
        States(word & STATE_MASK),
        word >> 8 & ATTEMPTS_MAX,
        bool(word & STICKY),
        word >> 16 & CODE_MAX,
        (word >> 32 & BYTE_MAX, word >> 40 & BYTE_MAX, word >> 48 & BYTE_MAX),
        word >> 56,
    )


def _clamp(number: int, most: int) -> int:
    return most if number > most else max(number, 0)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many recipients are in which state: of one ledger, or of any sum of ledgers.

    by_state             by the number of the state
    attempts             messages handed over, all attempts of all rows
    resent               rows attempted again after an attempt that may have been accepted
    next_attempt_s       earliest next attempt of a DEFERRED row, engine seconds; 0 if there is none
    first_attempt_ns     when the first attempt of all was made, engine time; 0 if there was none
    last_conclusion_ns   when an attempted row concluded last; 0 if none did
    The two times are exact where a holder returned its lease; after a crash they are known to the second.
    """

    by_state: tuple[int, ...] = (0,) * len(States)
    attempts: int = 0
    resent: int = 0
    next_attempt_s: int = 0
    first_attempt_ns: int = 0
    last_conclusion_ns: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            tuple(map(sum, zip(self.by_state, other.by_state, strict=True))),
            self.attempts + other.attempts,
            self.resent + other.resent,
            earliest(self.next_attempt_s, other.next_attempt_s),
            earliest(self.first_attempt_ns, other.first_attempt_ns),
            max(self.last_conclusion_ns, other.last_conclusion_ns),
        )

    @property
    def audience(self) -> int:
        """Everybody but the duplicates."""
        return sum(self.by_state) - self.by_state[States.DUPLICATE]

    @property
    def pending(self) -> int:
        """Never attempted."""
        return self.by_state[States.PENDING]

    @property
    def in_flight(self) -> int:
        """Claimed or sending."""
        return self.by_state[States.CLAIMED] + self.by_state[States.SENDING]

    @property
    def deferred(self) -> int:
        """Waiting for another attempt."""
        return self.by_state[States.DEFERRED]

    @property
    def sent(self) -> int:
        """Taken by a relay."""
        return self.by_state[States.SENT]

    @property
    def bounced(self) -> int:
        """Refused for good."""
        return self.by_state[States.BOUNCED]

    @property
    def failed(self) -> int:
        """Given up, or not to be composed."""
        return self.by_state[States.FAILED]

    @property
    def suppressed(self) -> int:
        """Not mailed at their wish."""
        return self.by_state[States.SUPPRESSED]

    @property
    def cancelled(self) -> int:
        """Not mailed since the campaign was cancelled."""
        return self.by_state[States.CANCELLED]

    @property
    def uncertain(self) -> int:
        """May have been taken by a relay."""
        return self.by_state[States.UNCERTAIN]

    @property
    def duplicates(self) -> int:
        """Rows that repeat an address: not in the audience."""
        return self.by_state[States.DUPLICATE]


def earliest(one: int, other: int) -> int:
    """The earlier of two times of which 0 means none."""
    return min(one, other) if one and other else one or other
