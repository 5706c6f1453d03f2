"""What the broker holds of a campaign (broker/running.py): each shard is found again, and counted once."""

from __future__ import annotations

import random

from broker.running import Phase, ShardState
from shm.files.ledger import Counts
from tests.fixtures.campaigns_running import campaign_of, counts, lease_of


def test_idle_shards_are_filed_where_they_are_found_again() -> None:
    """Fresh ones in order, deferred ones by their time, concluded ones nowhere."""
    campaign = campaign_of(1, {
        1: counts(pending=1), 2: counts(deferred=2, next_s=90), 3: counts(sent=3), 4: counts(deferred=1, next_s=50),
        5: counts(pending=1, deferred=1, next_s=40),
    })  # fmt: skip
    assert campaign.due(49) == (1, None)
    assert campaign.due(50) == (1, 4)
    campaign.take(1, fresh=True)
    campaign.take(4, fresh=False)
    assert campaign.due(100) == (5, 2)
    campaign.take(5, fresh=True)
    assert campaign.due(89) == (None, None)


def test_what_was_filed_under_an_older_count_is_passed_over() -> None:
    """A shard filed twice, or leased meanwhile, or with other times, is offered once and as it is now."""
    campaign = campaign_of(1, {1: counts(pending=1), 2: counts(deferred=1, next_s=50)})
    first, second = campaign.shards[1], campaign.shards[2]
    campaign.file(first)
    campaign.file(second)
    second.counts = counts(deferred=1, next_s=70)
    campaign.file(second)
    assert campaign.due(60) == (1, None)
    assert campaign.due(70) == (1, 2)
    first.phase = second.phase = Phase.LEASED
    assert campaign.due(70) == (None, None)
    first.phase = Phase.IDLE
    first.counts = counts(deferred=1, next_s=80)
    campaign.file(first)
    assert campaign.due(80) == (None, 1)


def test_counts_of_settled_shards_are_their_sum_whatever_comes_and_goes() -> None:
    """Shards that change hands at random leave the sum of those that are settled."""
    chance = random.Random(7)
    shards = {number: counts(pending=chance.randrange(9), sent=chance.randrange(9)) for number in range(1, 20)}
    campaign = campaign_of(1, shards)
    out: set[int] = set()
    for _ in range(500):
        number = chance.randrange(1, 20)
        shard = campaign.shards[number]
        if number in out:
            out.discard(number)
            campaign.settle(shard, counts(sent=chance.randrange(9), deferred=chance.randrange(3), next_s=5))
        else:
            out.add(number)
            campaign.unsettle(shard)
        settled = sum((s.counts for n, s in campaign.shards.items() if n not in out), Counts())
        assert campaign.settled.by_state == settled.by_state
    assert campaign.settled.audience == settled.audience


def test_a_campaign_has_concluded_when_nobody_can_be_mailed_and_nobody_is_at_a_shard() -> None:
    """Leases and workers keep it open, whatever the settled counts say."""
    campaign = campaign_of(1, {1: counts(sent=1, bounced=2, uncertain=1)})
    assert campaign.concluded
    campaign.busy = 1
    assert not campaign.concluded
    campaign.busy = 0
    lease_of(campaign, 1, row=1)
    assert not campaign.concluded
    assert not campaign_of(1, {1: counts(sent=1, deferred=1, next_s=9)}).concluded


def test_a_cancelled_campaign_may_end_when_nobody_is_at_a_shard() -> None:
    """What a worker had in hand when the cancel came is cancelled then, so that it does end."""
    campaign = campaign_of(1, {1: counts(pending=1)}, cancelling=True)
    assert campaign.may_end
    assert not campaign.concluded
    campaign.busy = 1
    assert not campaign.may_end


def test_a_shard_says_what_it_holds() -> None:
    """Fresh rows, or none; anything left to attempt, or nothing."""

    def shard(of: Counts) -> ShardState:
        return ShardState(1, "other", 5, of)

    assert shard(counts(pending=1)).fresh
    assert not shard(counts(deferred=1)).fresh
    assert not shard(counts(deferred=1)).concluded
    assert shard(counts(sent=3, duplicate=1, cancelled=1)).concluded
