"""How the connections that a relay allows are shared out among the senders that have work for it.

Pure: numbers come in, allowances come out; `broker/relay_watch.py` publishes them.

Invariants
- At every instant the allowances and the connections beyond them sum to the relay's limit at most: lowered at once,
  raised only by what the others have let go of.
- A sender's allowances over all relays stay below its share of file descriptors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["allowances", "capped", "connections_max", "next_allowances"]

FDS_SHARE: Final = 0.9
FDS_KEPT: Final = 450  # of a sender's descriptors, for 128 leases at three files each, and for what a process has open


def allowances(connections: int, senders: int) -> list[int]:
    """Shares of a relay's `connections` for each sender, the first ones one more; their sum is `connections`.

    With fewer connections than senders the last senders have none.
    """
    each, more = divmod(connections, senders)
    return [each + (index < more) for index in range(senders)]


def connections_max(fds: int | None) -> int:
    """Connections that one process with so many file descriptors may have in all; None = no limit is known."""
    return 1 << 30 if fds is None else max(1, int(fds * FDS_SHARE) - FDS_KEPT)


def capped(wanted: Sequence[int], most: int) -> list[int]:
    """What one sender is to have of each relay, brought down in proportion so that the sum is at most `most`.

    A relay it was to have connections to keeps one as long as there are enough for that.
    """
    total = sum(wanted)
    if total <= most:
        return list(wanted)
    given = [n * most // total for n in wanted]
    for index, n in enumerate(wanted):
        if n and not given[index] and sum(given) < most:
            given[index] = 1
    return given


def next_allowances(
    limit: int, current: Mapping[int, int], held: Mapping[int, int], wanted: Mapping[int, int]
) -> dict[int, int]:
    """The allowances to publish now, on the way from `current` to `wanted`, by row.

    limit   connections that the relay allows in all
    held    connections that a row has, or may be opening under an allowance that it has not seen lowered yet
    wanted  what each row is to have in the end; their sum is at most `limit`
    """
    given = {row: min(current.get(row, 0), n) for row, n in wanted.items()}
    # What is lowered now is not let go of now: until the sender has seen it, it may open as many as before.
    free = limit - sum(max(current.get(row, 0), held.get(row, 0)) for row in wanted)
    for row, n in wanted.items():
        covered = max(given[row], min(n, held.get(row, 0)))  # what it holds already costs nothing more
        more = max(0, min(n - covered, free))
        free -= more
        given[row] = covered + more
    return given
