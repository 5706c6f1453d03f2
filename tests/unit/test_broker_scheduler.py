"""Who is next (broker/scheduler.py): plans for campaigns and senders that are made of a few numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from broker.running import Running
from broker.scheduler import LEASES_PER_SENDER, Offer, SenderLoad, plan
from shm.files.ledger import Counts
from tests.fixtures.campaigns_running import campaign_of, counts, lease_of

NOW_S = 1000
FRESH = counts(pending=10)


def fresh(number: int = 1, shards: int = 9, **changes: Any) -> Running:
    """A campaign of shards that nobody has touched."""
    return campaign_of(number, dict.fromkeys(range(1, shards + 1), FRESH), **changes)


def due(at_s: int) -> Counts:
    """A shard with one row that waits for its retry."""
    return counts(sent=9, deferred=1, next_s=at_s)


def load(row: int = 1, slots: int = 128, relays: frozenset[int] = frozenset({0}), **held: int) -> SenderLoad:
    """A sender; `c1=2`: it holds two leases of campaign 1."""
    return SenderLoad(row, slots, {int(name[1:]): n for name, n in held.items()}, relays)


def planned(campaigns: list[Running], senders: list[SenderLoad], share: float = 0.25) -> list[Offer]:
    """The plan now."""
    return plan(campaigns, senders, NOW_S, share)


def test_every_sender_is_kept_a_shard_ahead() -> None:
    """Two leases a sender, in turns, in the order of the shards."""
    offers = planned([fresh()], [load(1), load(2)])
    assert [(offer.shard, offer.row, offer.retry) for offer in offers] == [
        (1, 1, False), (2, 2, False), (3, 1, False), (4, 2, False),
    ]  # fmt: skip


def test_who_holds_enough_gets_no_more() -> None:
    """Leases that are out count."""
    campaign = fresh()
    for number in range(101, 101 + LEASES_PER_SENDER):
        lease_of(campaign, number, row=1)
    assert planned([campaign], [load(1, c1=2)]) == []


def test_nobody_to_send_or_nothing_to_do_is_no_plan() -> None:
    """Without senders no shard is taken off its queue."""
    campaign = fresh(shards=1)
    assert planned([campaign], []) == []
    assert planned([], [load()]) == []
    assert list(campaign.fresh) == [1]


def test_a_higher_priority_comes_first_then_who_is_behind_its_share() -> None:
    """Attempts by weight decide between campaigns of one priority."""
    campaigns = [fresh(1, passed=5.0), fresh(2, passed=1.0), fresh(3, passed=9.0, priority=1)]
    offers = planned(campaigns, [load(1)])
    assert [offer.campaign.id for offer in offers] == [3, 3, 2, 2, 1, 1]


def test_a_sender_without_a_connection_to_the_relay_gets_no_lease() -> None:
    """It could do nothing with it, and the shard would lie there for ever."""
    campaign = fresh(relays=[(1, 1), (2, 1)])
    senders = [load(1, relays=frozenset({0})), load(2, relays=frozenset({0, 2}))]
    offers = planned([campaign], senders)
    assert [offer.row for offer in offers] == [2, 2]
    assert planned([fresh(relays=[])], senders) == []


def test_a_campaign_with_a_gap_stays_with_one_sender() -> None:
    """Also when that one is not to be had just now: another must not start beside it."""
    campaign = fresh(gapped=True)
    assert {offer.row for offer in planned([campaign], [load(1), load(2)])} == {1}
    campaign = fresh(gapped=True)
    lease_of(campaign, 101, row=2)
    assert [offer.row for offer in planned([campaign], [load(1), load(2, c1=1)])] == [2]
    assert planned([campaign], [load(1)]) == []


def test_retries_take_their_share_while_fresh_mail_waits_and_all_when_none_does() -> None:
    """A retry that is not due is no retry."""
    retries = {number: due(NOW_S - 1) for number in range(11, 20)}
    campaign = campaign_of(1, {1: FRESH, 2: FRESH, 3: FRESH, **retries, 30: due(NOW_S + 1)})
    offers = planned([campaign], [load(1), load(2)])
    assert [offer.retry for offer in offers] == [True, False, False, False]
    campaign = campaign_of(1, {**retries, 30: due(NOW_S + 1)})
    offers = planned([campaign], [load(1), load(2)])
    assert [offer.retry for offer in offers] == [True] * 4
    assert 30 not in {offer.shard for offer in offers}


def test_slow_campaigns_share_the_slots_and_late_ones_find_some() -> None:
    """A hundred campaigns at two senders each get a lease; ten more that come when the shared slots are full, too."""
    campaigns = [fresh(number) for number in range(1, 101)]
    senders = [load(1), load(2)]
    offers = planned(campaigns, senders)
    given = Counter(offer.campaign.id for offer in offers)
    assert given.keys() == set(range(1, 101))
    assert max(given.values()) == 1
    full = [load(1, c500=96), load(2, c500=96)]
    late = [fresh(number) for number in range(1, 11)]
    assert Counter(offer.campaign.id for offer in planned(late, full)) == dict.fromkeys(range(1, 11), 1)
    assert planned([fresh(1)], [load(1, c500=128)]) == [], "a slot more than it has is given to nobody"
