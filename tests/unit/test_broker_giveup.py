"""Who gives recipients up, and where (broker/giveup.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from broker.giveup import give_up
from broker.running import Phase, Running, ShardState
from shm.files.ledger import Counts, Ledger, States
from tests.fixtures.campaigns_running import campaign_of, lease_of

NOW_S = 100_000


class Files:
    """The broker's files thread, which tells what it was asked to change."""

    def __init__(self) -> None:
        self.changed: list[int] = []

    def now_s(self) -> int:
        return NOW_S

    async def work_on_idle(self, campaign: Running, shards: list[ShardState], change: Callable[[Ledger], Any]) -> None:
        self.changed += [shard.number for shard in shards]


def _deferred(first_s: int) -> Counts:
    by_state = [0] * len(States)
    by_state[States.DEFERRED] = 1
    return Counts(tuple(by_state), next_attempt_s=NOW_S + 50, first_attempt_ns=first_s * 10**9)


def test_idle_shards_are_looked_at_and_those_that_are_out_are_left_to_their_holders() -> None:
    """A holder gives its people up itself, each second: it is not called back for it."""
    late, early = _deferred(NOW_S - 90_000), _deferred(NOW_S - 10)
    campaign = campaign_of(1, {1: late, 2: early, 3: late})
    lease = lease_of(campaign, 3, 1)
    files = Files()
    asyncio.run(give_up(files, campaign))
    assert files.changed == [1]
    assert (campaign.shards[3].phase, lease.action) == (Phase.LEASED, 1)
