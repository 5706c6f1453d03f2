"""`campaign retry`: who has failed, or may have got nothing, is tried once more, of a finished campaign too.

What is to be done is decided in one transaction of the store (`store/retries`) and then done ledger by ledger, by the
broker as the leaseholder of every idle shard. Whoever had concluded by the second of the decision is meant.

Invariants
- Killed at any moment, either nothing was decided and nothing has changed, or the next start does the rest before
  anybody of the campaign is mailed. Doing it twice changes nothing: who failed again meanwhile is not meant.
- A shard that a sender holds is called back; it is changed when it is idle, and given to nobody in between.
- A finished campaign is lent to nobody before every ledger has been changed, and before whoever was suppressed since
  its snapshot is known to be at hand (`silenced`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

from broker.contract.errors import EcmError, plainly
from broker.contract.log import log
from broker.custody import Custody
from broker.events import EventBus
from broker.leases import RETURN, RUN, Leases
from broker.preparing import Preparing
from broker.running import ACTIVE, Phase, Running, ShardState
from broker.silenced import Silencing, silence
from broker.store import campaigns as store_campaigns
from broker.store import retries as store_retries
from broker.store.campaigns import CampaignRow
from broker.store.retries import Intent, intent_of
from shm.files.durable import FileFault
from shm.files.ledger import Counts, Ledger, States
from shm.files.ledger_idle import Retried, retryable

__all__ = ["STATES", "Again"]

STATES: Final = {"failed": States.FAILED, "uncertain": States.UNCERTAIN}
ANSWER_S: Final = 10.0  # how long the answer waits for ledgers that senders hold; they are changed all the same
LOOK_S: Final = 0.01  # between looks at shards that have been called back
DISK_S: Final = 1.0  # between tries to write what a disk did not take


class _Campaigns(Protocol):
    """What this module needs of the campaigns."""

    running: dict[int, Running]
    preparing: Preparing
    turn: asyncio.Lock

    async def account(self, number: int) -> dict[str, Any]: ...
    async def conclude_if_done(self, campaign: Running) -> None: ...


class _Engine(Silencing, Protocol):
    """What this module needs of the engine."""

    leases: Leases
    events: EventBus

    def task(self, coroutine: Coroutine[Any, Any, None]) -> None: ...
    def work_on_idle(
        self, campaign: Running, shards: list[ShardState], change: Callable[[Ledger], Any]
    ) -> Awaitable[None]: ...
    def wake(self) -> None: ...


class Again:
    """The retries of one engine."""

    def __init__(self, engine: _Engine, campaigns: _Campaigns, custody: Custody) -> None:
        self._engine = engine
        self._campaigns = campaigns
        self._custody = custody
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()  # one retry of a campaign at a time

    async def retry(self, number: int, states: Sequence[str]) -> dict[str, Any]:
        """Try again who is in `states` (of STATES) now: {"retried": {"failed", "uncertain"}, "campaign": its account}.

        What is answered has been decided durably. Raises EcmError wrong_state, and what the store says.
        """
        decided: asyncio.Future[Retried] = asyncio.get_running_loop().create_future()
        ended = asyncio.Event()
        self._engine.task(self._whole(number, states, decided, ended))
        retried = await asyncio.shield(decided)  # a client that goes away does not undo it
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), ANSWER_S)
        return {
            "retried": {"failed": retried.failed, "uncertain": retried.uncertain},
            "campaign": await self._campaigns.account(number),
        }

    async def _whole(
        self, number: int, states: Sequence[str], decided: asyncio.Future[Retried], ended: asyncio.Event
    ) -> None:
        """Decide, tell, and do it to its end."""
        try:
            async with self._turns.setdefault(number, asyncio.Lock()):
                intent = Intent(tuple(states), self._engine.now_s())
                retried, campaign = await self._decide(number, intent)
                decided.set_result(retried)
                if not retried.total:
                    return
                if campaign is None:
                    await self._campaigns.preparing.resume([await self._row(number)])  # `finish` does it on the way
                else:
                    await self._do(campaign, intent)
                    await self._close(campaign.id)
        except (OSError, FileFault, EcmError) as error:
            if decided.done():
                raise
            decided.set_exception(error if isinstance(error, EcmError) else EcmError("io_failed", plainly(error)))
        finally:
            if not decided.done():  # a fault of ours, or the engine stops: whoever asked is told
                decided.set_exception(EcmError("internal", "the retry was broken off", hint="the log says why"))
            ended.set()

    async def _row(self, number: int) -> CampaignRow:
        """A campaign that was decided on; as long as the store does not give it, it is asked again."""
        while True:
            try:
                row: CampaignRow = await self._engine.store_call(store_campaigns.get, number)
            except EcmError as error:
                log.error("campaign not taken up", campaign=number, reason=error.message)
                await asyncio.sleep(DISK_S)
            else:
                return row

    # Deciding.

    async def _decide(self, number: int, intent: Intent) -> tuple[Retried, Running | None]:
        """Commit who is tried again; how many, and the campaign if it is under way."""
        await self._campaigns.preparing.taken_up(number)
        while True:
            campaign = self._campaigns.running.get(number)
            found = await self._look(campaign, intent) if campaign is not None else None
            async with self._campaigns.turn:
                if self._campaigns.running.get(number) is not campaign:
                    continue  # it ended, or was taken up, while its ledgers were counted
                if campaign is None or found is None:
                    return await self._decide_finished(number, intent), None
                if campaign.cancelling:
                    raise _wrong_state("cancelled")
                return await self._decide_running(campaign, found, intent), campaign

    async def _decide_finished(self, number: int, intent: Intent) -> Retried:
        row: CampaignRow = await self._engine.store_call(store_campaigns.get, number)
        if row.state != "finished":
            raise _wrong_state(row.state)
        counts = row.counts or {}
        retried = Retried(**{state: counts.get(state) or 0 for state in intent.states})
        if retried.total:
            await self._commit(row.id, intent, retried)
            self._engine.events.publish("campaign", "campaign.running", campaign=row.id, data={"reason": None})
        return retried

    async def _decide_running(self, campaign: Running, found: dict[int, Retried], intent: Intent) -> Retried:
        retried = sum(found.values(), Retried())
        if not retried.total:
            return retried
        held = {number for number, of in found.items() if of.total}
        held |= {n for n, shard in campaign.shards.items() if n not in found and _meant(shard, intent)}
        campaign.held |= held
        try:
            await self._commit(campaign.id, intent, retried)
        except BaseException:
            _release(campaign, held)
            raise
        return retried

    async def _commit(self, number: int, intent: Intent, retried: Retried) -> None:
        await self._engine.store_call(store_retries.begin, number, intent.states, intent.until_s)
        data = {"failed": retried.failed, "uncertain": retried.uncertain}
        log.info("recipients retried", campaign=number, **data)
        self._engine.events.publish("recipient", "recipient.retried", campaign=number, data=data)

    async def _look(self, campaign: Running, intent: Intent) -> dict[int, Retried]:
        """Whom it would concern, by shard; read in the files thread, as ledgers are closed there."""
        meant = [shard for shard in campaign.shards.values() if _meant(shard, intent)]
        found = {}
        for shard in meant:
            found[shard.number] = await self._engine.work(partial(self._count, campaign, shard, intent))
        return found

    def _count(self, campaign: Running, shard: ShardState, intent: Intent) -> Retried:
        ledger = self._custody.open(campaign.id, shard.number)  # a second mapping, only read
        try:
            return retryable(ledger, _states(intent), intent.until_s)
        finally:
            ledger.close()

    # Doing.

    async def _do(self, campaign: Running, intent: Intent) -> None:
        """Change every held shard as soon as it is idle. A cancel that comes in between ends it."""
        try:
            await self._second_over(intent)
            while campaign.held and not campaign.cancelling:
                wait_s = LOOK_S
                leases = {lease.shard.number: lease for lease in campaign.leases.values()}
                for shard in [campaign.shards[number] for number in sorted(campaign.held)]:
                    lease = leases.get(shard.number)
                    if shard.phase is Phase.IDLE and not campaign.cancelling:
                        if not await self._change_idle(campaign, shard, intent):
                            wait_s = DISK_S
                    elif lease is not None and lease.action == RUN and shard.phase is Phase.LEASED:
                        self._engine.leases.order(lease, RETURN)
                await asyncio.sleep(wait_s if campaign.held else 0)
        finally:
            _release(campaign, campaign.held)
        self._engine.wake()
        await self._campaigns.conclude_if_done(campaign)

    async def _second_over(self, intent: Intent) -> None:
        """Nobody is mailed in the second of the decision: who failed again in it would be meant a second time."""
        while self._engine.now_s() <= intent.until_s:
            await asyncio.sleep(LOOK_S)

    async def _change_idle(self, campaign: Running, shard: ShardState, intent: Intent) -> bool:
        """Change one shard, which may be lent again then; whether the disk took it."""
        changed = []

        def change(ledger: Ledger) -> None:
            changed.append(ledger.retry(_states(intent), self._engine.now_s(), intent.until_s))

        await self._engine.work_on_idle(campaign, [shard], change)
        if changed:
            _release(campaign, {shard.number})
            self._engine.wake()
        return bool(changed)

    async def _close(self, number: int) -> None:
        try:
            await self._engine.store_call(store_retries.done, number)
        except EcmError as error:  # the next start does it again, which changes nothing
            log.error("state not kept", campaign=number, state="retried", reason=error.message)

    async def finish(self, row: CampaignRow, shards: Sequence[ShardState]) -> None:
        """Do what was decided for a campaign that is being taken up, before anybody can lease a shard of it.

        The counts of `shards` follow. Raises OSError, FileFault, EcmError; then it is to be called again.
        """
        intent = intent_of(row)
        if intent is None:
            return
        await self._second_over(intent)
        for shard in shards:
            if _meant(shard, intent):
                shard.counts = await self._engine.work(partial(self._change, row.id, shard.number, intent))
        position = await silence(self._engine, self._custody, row.id, shards)
        await self._engine.store_call(store_retries.done, row.id, position)

    def _change(self, campaign: int, number: int, intent: Intent) -> Counts:
        ledger = self._custody.open(campaign, number)
        try:
            ledger.retry(_states(intent), self._engine.now_s(), intent.until_s)
            return ledger.summary() or ledger.count()
        finally:
            ledger.close()


def _meant(shard: ShardState, intent: Intent) -> bool:
    """Whether it may hold somebody who is meant. What a shard that is out holds is known when it is back."""
    return shard.phase is not Phase.IDLE or any(shard.counts.by_state[state] for state in _states(intent))


def _states(intent: Intent) -> tuple[States, ...]:
    return tuple(STATES[state] for state in intent.states)


def _release(campaign: Running, numbers: Iterable[int]) -> None:
    """Let shards be lent again."""
    for number in list(numbers):
        campaign.held.discard(number)
        if campaign.shards[number].phase is Phase.IDLE:
            campaign.file(campaign.shards[number])


def _wrong_state(state: str) -> EcmError:
    if state in ACTIVE:
        return EcmError("busy", "cannot retry: its files are being taken up", hint="try again in a moment")
    hint = "who is to get it after all needs a new campaign" if state == "cancelled" else None
    return EcmError("wrong_state", f"cannot retry: it is {state}", field="campaign", hint=hint)
