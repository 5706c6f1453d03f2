"""Gives recipients up whose time is over, whatever their campaign does: running, waiting or paused.

The broker does it in shards that nobody holds; a holder does it in its own, each second.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

from broker.running import Phase, Running, ShardState
from shm.files.ledger import Ledger

__all__ = ["LOOK_S", "give_up", "look_s"]

LOOK_S: Final = 30.0
LOOK_S_MIN: Final = 1.0


class _Engine(Protocol):
    """What this module needs of the engine."""

    def now_s(self) -> int: ...
    def work_on_idle(
        self, campaign: Running, shards: list[ShardState], change: Callable[[Ledger], Any]
    ) -> Awaitable[None]: ...


def look_s(campaigns: list[Running]) -> float:
    """How long until the next look: for campaigns that give up soon a quarter of that time, else LOOK_S."""
    soonest = min((campaign.give_up_s / 4 for campaign in campaigns), default=LOOK_S)
    return max(LOOK_S_MIN, min(LOOK_S, soonest))


async def give_up(engine: _Engine, campaign: Running) -> None:
    """Give up who is to be given up in idle shards of a campaign now."""
    now_s, give_up_s = engine.now_s(), campaign.give_up_s

    def late(shard: ShardState) -> bool:
        first_s = shard.counts.first_attempt_ns // 10**9
        return bool(shard.counts.deferred and now_s - first_s >= give_up_s)

    idle = [shard for shard in campaign.shards.values() if shard.phase is Phase.IDLE and late(shard)]
    await engine.work_on_idle(campaign, idle, partial(Ledger.give_up, now_s=now_s, give_up_s=give_up_s))
