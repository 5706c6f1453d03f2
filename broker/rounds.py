"""The broker's rounds: what it looks at again and again, and how often.

- leases and grants: every 5 ms while a lease is paced, every 20 ms while one is out
- handing out shards: when something changed, and every 50 ms while a campaign runs
- supervisor, shares of connections: every 100 ms; relays, waiting campaigns, rates: every 250 ms; clock: every second
With nothing to send, only the slow ones run: an idle broker costs next to nothing.
"""

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from broker.account import rate_of
from broker.breaker import judge
from broker.giveup import give_up, look_s
from broker.leases import RETURN, RUN
from broker.relay_news import keep_learnt, tell
from broker.running import SENDING, Phase, Running, ShardState
from broker.scheduler import Offer, SenderLoad, plan

if TYPE_CHECKING:
    from broker.engine import Engine

__all__ = ["Rounds"]

PACED_S = 0.005
LEASED_S = 0.02
IDLE_S = 0.25
SUPERVISE_S = 0.1
RELAYS_S = 0.25
SHARE_S = 0.1
SAMPLE_S = 0.25


class Rounds:
    """The loops of one engine."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=24)

    def all(self) -> list[Coroutine[Any, Any, None]]:
        """Every loop, to be made a task each."""
        return [
            self._leases(),
            self._schedule(),
            self._every(SUPERVISE_S, self._supervise),
            self._every(SAMPLE_S, self._sample),
            self._every(RELAYS_S, self._relays),
            self._every(SHARE_S, self._share),
            self._keep_clock(),
            self._give_up(),
        ]

    async def _every(self, seconds: float, step: Any) -> None:
        while True:
            step()
            await asyncio.sleep(seconds)

    async def _keep_clock(self) -> None:
        while True:
            await self._engine.work(self._engine.keep_clock)  # a file: not on the loop
            await asyncio.sleep(1.0)

    async def _leases(self) -> None:
        """Take back what holders are done with; give grants."""
        engine = self._engine
        while True:
            for lease in engine.leases.poll():
                engine.task(engine.leases.take_back(lease, dead=False))
            engine.pacing.tick()
            if engine.pacing.reserves_due:
                engine.task(engine.pacing.keep_reserves())
            paced = engine.pacing.wanted
            await asyncio.sleep(PACED_S if paced else LEASED_S if engine.leases.open else IDLE_S)

    async def _schedule(self) -> None:
        """Hand out shards."""
        engine = self._engine
        while True:
            sending = [c for c in engine.campaigns.running.values() if c.state in SENDING]
            await engine.woken(0.05 if sending else IDLE_S)
            if engine.stopping or not sending:
                continue
            slots = engine.tables.slots_per_actor
            senders = [
                SenderLoad(slot.row, slots, engine.leases.load(slot.row), engine.relays.open_to(slot.row))
                for slot in engine.supervisor.senders()
            ]
            for campaign in sending:
                campaign.wake_rested(time.monotonic())
            able = [c for c in sending if self._may_lease(c)]
            for offer in plan(able, senders, engine.now_s(), engine.settings.retry.share):
                shard = offer.campaign.shards[offer.shard]
                if engine.stopping or offer.campaign.state not in SENDING or shard.phase is not Phase.IDLE:
                    offer.campaign.file(shard)
                    continue
                await self._offer(offer, shard)

    async def _offer(self, offer: Offer, shard: ShardState) -> None:
        """Lease a shard as planned, unless what was offered just before took the last connection to its relay."""
        engine, campaign, row = self._engine, offer.campaign, offer.row
        routes = tuple(route for route in campaign.relays if engine.relays.knows(row, route[0]))
        usable = [index for index, _ in routes if index in engine.relays.open_to(row)]
        if not usable:
            campaign.file(shard)
            return
        gated = engine.pacing.gated(campaign, [index for index, _ in routes])
        relay = next((index for index in usable if engine.relays.down([index]) is None), usable[0])
        await engine.leases.offer(
            campaign, shard, row, relay=relay, gated=gated, retry=offer.retry,
            routes=routes if len(routes) > 1 else (),
        )  # fmt: skip
        self._share()

    def _share(self) -> None:
        """Share connections out among the senders that have work for them."""
        self._engine.relays.share(self._engine.leases.work())

    def _may_lease(self, campaign: Running) -> bool:
        """Whether it may be handed shards; one that waits and has none out also to see whether the cause is gone."""
        cause = self._cause(campaign)
        if cause is None or campaign.leases:
            return cause is None
        if cause[0] == "sender_crashes":
            return time.monotonic() >= campaign.probed_from
        return cause[0] in ("relay_unreachable", "relay_refused")

    def _supervise(self) -> None:
        self._engine.supervisor.step()

    def _sample(self) -> None:
        engine, now = self._engine, time.monotonic()
        totals = engine.totals()
        self._samples.append((now, totals["sent"], totals["attempted"]))
        for campaign in engine.campaigns.running.values():
            tally = engine.tally(campaign)
            campaign.samples.append((now, tally.sent))
            verdict = judge(campaign.breaker, tally.minus(campaign.judged))
            if verdict is not None and campaign.state in SENDING:
                engine.task(engine.campaigns.trip(campaign, verdict))

    def _relays(self) -> None:
        """Campaigns that cannot send wait, and say why; they go on by themselves when the cause is gone."""
        engine = self._engine
        tell(engine, engine.relays.look([slot.row for slot in engine.supervisor.senders()]))
        if learnt := engine.relays.learnt(engine.clock.now_ns() / 1e9):
            engine.task(keep_learnt(engine, learnt))
        for campaign in engine.campaigns.running.values():
            self._move_on(campaign)
            cause = self._cause(campaign)
            if campaign.may_end and (cause is None or cause[0] != "disk"):
                engine.task(engine.campaigns.conclude_if_done(campaign))  # a disk did not let it end at once
            if cause is None and campaign.state == "waiting":
                engine.task(engine.campaigns.waiting(campaign, None))
            elif cause is not None and campaign.state in SENDING and cause != _told(campaign):
                engine.task(engine.campaigns.waiting(campaign, cause))

    def _move_on(self, campaign: Running) -> None:
        """Call back leases that can use none of the campaign's relays where they are, or one that is not its any more.

        A lease on a pool goes on; it gets slices for the relays that work, and opens connections to one of these.
        """
        relays, mine = self._engine.relays, set(_relays(campaign))
        for lease in list(campaign.leases.values()):
            if lease.action != RUN:
                continue
            usable = relays.open_to(lease.row).intersection(lease.relays)
            if not usable or not mine.issuperset(lease.relays):
                self._engine.leases.order(lease, RETURN)
            elif lease.relay not in usable:
                lease.relay = min(usable, key=lambda index: (relays.down([index]) is not None, index))
                self._engine.leases.order(lease, RUN)

    def _cause(self, campaign: Running) -> tuple[str, str, str] | None:
        """(code, message, hint) of what keeps a campaign from sending."""
        if campaign.faulted > time.monotonic():
            return "disk", campaign.fault, "free or mend the disk; sending goes on by itself"
        if campaign.barred is not None:
            return campaign.barred
        if campaign.crash:
            hint = "log/engine.log says where; mend that, and sending goes on by itself"
            return "sender_crashes", f"the sender crashes: {campaign.crash}", hint
        down = self._engine.relays.why_down(_relays(campaign))
        return None if down is None else (down.code, down.message, down.hint)

    async def _give_up(self) -> None:
        """Give up recipients whose time is over, whatever the campaign's state."""
        engine = self._engine
        while True:
            await asyncio.sleep(look_s(list(engine.campaigns.running.values())))
            for campaign in list(engine.campaigns.running.values()):
                await give_up(engine, campaign)
                await engine.campaigns.conclude_if_done(campaign)

    def rates_now(self) -> tuple[float, float]:
        """(sent, attempted) a second over the last five seconds."""
        now, totals = time.monotonic(), self._engine.totals()
        sent = rate_of([(at, s) for at, s, _ in self._samples], now, totals["sent"])
        attempted = rate_of([(at, a) for at, _, a in self._samples], now, totals["attempted"])
        return sent, attempted


def _told(campaign: Running) -> tuple[str, str, str] | None:
    """(code, message, hint) of what a campaign is said to wait for."""
    reason = campaign.reason
    return (reason["code"], reason["message"], reason["hint"]) if reason and campaign.state == "waiting" else None


def _relays(campaign: Running) -> list[int]:
    return [index for index, _ in campaign.relays]
