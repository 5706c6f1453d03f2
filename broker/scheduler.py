"""Who is next: which shard of which campaign goes to which sender. Policy only; `leases` makes it so.

A pure function over what the broker knows. Campaigns of a higher priority come first; within a priority the campaign
that is furthest behind its fair share (attempts divided by weight) comes first. Every sender is kept a shard ahead,
so that it never waits for the broker when one runs out.

Slots are what many slow campaigns run out of, since a lease under a low limit lasts for hours. So no campaign plans for
more than its share of them, and a quarter is kept for campaigns that hold no lease at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from broker.running import Running

__all__ = ["LEASES_PER_SENDER", "Offer", "SenderLoad", "plan"]

LEASES_PER_SENDER = 2  # of one campaign: one being worked, one ready behind it
SLOTS_SHARE = 0.75  # of a sender's lease slots; the others are for campaigns that hold none


@dataclass(slots=True)
class SenderLoad:
    """A sender that may be given leases.

    slots        how many it can hold
    by_campaign  how many it holds
    relays       indexes of the relays that it may open connections to
    """

    row: int
    slots: int
    by_campaign: dict[int, int]
    relays: frozenset[int]

    @property
    def held(self) -> int:
        """Leases it holds in all."""
        return sum(self.by_campaign.values())

    @property
    def shared(self) -> int:
        """Slots that campaigns share."""
        return max(1, int(self.slots * SLOTS_SHARE))


@dataclass(frozen=True, slots=True)
class Offer:
    """One decision: lease this shard to that sender. `retry`: for its due retries alone."""

    campaign: Running
    shard: int
    row: int
    retry: bool


def plan(campaigns: Sequence[Running], senders: Sequence[SenderLoad], now_s: int, retry_share: float) -> list[Offer]:
    """The offers to make now.

    campaigns    those that may send (running), in any order
    senders      those that may be given leases; their loads are updated as offers are decided
    now_s        engine time in seconds, against which retries are due
    retry_share  of a campaign's leases, at most, go to retries while it has fresh mail
    """
    offers: list[Offer] = []
    if not senders or not campaigns:
        return offers
    share = max(1, sum(sender.shared for sender in senders) // len(campaigns))
    for campaign in sorted(campaigns, key=lambda c: (-c.priority, c.passed, c.id)):
        reaching = [s for s in senders if any(index in s.relays for index, _ in campaign.relays)]
        wanted = min(LEASES_PER_SENDER * (1 if campaign.gapped else len(reaching)), share)
        held = len(campaign.leases)
        retrying = sum(lease.retry for lease in campaign.leases.values())
        while held < wanted:
            sender = _sender_for(campaign, reaching, first=held == 0)
            if sender is None:
                break
            shard, retry = _next_shard(campaign, now_s, retrying, max(1, int(retry_share * wanted)))
            if shard is None:
                break
            sender.by_campaign[campaign.id] = sender.by_campaign.get(campaign.id, 0) + 1
            offers.append(Offer(campaign, shard, sender.row, retry))
            held += 1
            retrying += retry
    return offers


def _next_shard(campaign: Running, now_s: int, retrying: int, retrying_max: int) -> tuple[int | None, bool]:
    fresh, retry = campaign.due(now_s)
    if retry is not None and (fresh is None or retrying < retrying_max):
        campaign.take(retry, fresh=False)
        return retry, True
    if fresh is not None:
        campaign.take(fresh, fresh=True)
        return fresh, False
    return None, False


def _sender_for(campaign: Running, senders: Sequence[SenderLoad], *, first: bool) -> SenderLoad | None:
    mine = campaign.id
    if campaign.gapped:
        holding = [s for s in senders if s.by_campaign.get(mine)]
        rows = {lease.row for lease in campaign.leases.values()}
        if rows and not holding:
            return None  # its sender is not available now; another must not start beside it
        senders = holding or senders
    room = [s for s in senders if s.held < (s.slots if first else s.shared)]
    return min(room, key=lambda s: (s.by_campaign.get(mine, 0), s.held, s.row), default=None)
