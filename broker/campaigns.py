"""The life of a campaign: draft, preparing, running, waiting, paused, finished or cancelled.

Decides what may follow what, and keeps store, memory and shards in step; it makes no files (`preparing`), hands
shards to nobody (`scheduler`, `leases`) and counts nothing on the loop (`account`).

Invariants
- What the store says survives; every change of state is committed there before it is answered.
- Changes of state take turns: each looks at the state, commits the new one and remembers it before the next one looks.
- Pause and cancel answer when no further MAIL can leave: every holder has seen the order, or has returned its lease.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from broker.account import account_of, count_open, ended_account, rate_of, sustained
from broker.again import Again
from broker.breaker import Verdict
from broker.contract.campaign import CampaignSpec
from broker.contract.errors import EcmError
from broker.contract.log import log
from broker.contract.timefmt import rfc3339
from broker.custody import Custody
from broker.leases import CANCEL, RETURN
from broker.preparing import Preparing, origin_of
from broker.running import ACTIVE, SENDING, Phase, Running
from broker.store import campaigns as store_campaigns
from broker.why import why
from shm.files.ledger import Counts

if TYPE_CHECKING:
    from broker.engine import Engine

__all__ = ["Campaigns"]

CANCEL_S = 0.5  # how long the answer to a cancel waits for shards that nobody holds to be rewritten
ORDER_SEEN_S = 1.0  # a holder's loop beats every 100 ms; one that does not within this is hung, and being killed


class Campaigns:
    """All campaigns of the instance, by what may be done to them."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self.running: dict[int, Running] = {}
        self.preparing = Preparing(engine, self)
        self.turn = asyncio.Lock()  # of a change of state; held for store calls only
        self.again = Again(engine, self, Custody(engine.state, engine.instance, engine.machine.boot_id or ""))

    # what is asked of them

    async def resolve(self, campaign: str | int) -> int:
        """The id of a campaign named by id or name. Raises EcmError unknown_campaign."""
        row = await self._engine.store_call(store_campaigns.get, campaign)
        if row is None:
            raise EcmError(
                "unknown_campaign", f"no campaign `{campaign}`", field="campaign", hint="`ctl campaign list` names them"
            )
        return int(row.id)

    async def account(self, number: int) -> dict[str, Any]:
        """The campaign object. Raises EcmError unknown_campaign."""
        running = self.running.get(number)
        if running is not None:
            return await self._live_account(running)
        row = await self._engine.store_call(store_campaigns.get, number)
        if row is None:
            raise EcmError("unknown_campaign", f"no campaign `{number}`", field="campaign")
        return self._idle_account(row)

    async def listing(self, *, limit: int = 1000, since_s: float | None = None) -> list[dict[str, Any]]:
        """Campaign objects, newest first; with `since_s`, only those that have not ended or ended after it."""
        if since_s is None:
            rows = await self._engine.store_call(store_campaigns.listing, limit)
        else:
            rows = await self._engine.store_call(store_campaigns.recent, since_s)
        return list(await asyncio.gather(*(self._listed(row) for row in rows[:limit])))

    async def _listed(self, row: Any) -> dict[str, Any]:
        # Who was under way when the rows were read may have ended since, or be in memory only now.
        under_way = row.id in self.running or row.state in ACTIVE
        return await self.account(row.id) if under_way else self._idle_account(row)

    def _idle_account(self, row: Any) -> dict[str, Any]:
        if row.state in ACTIVE:  # its files are ready and are being taken up: till then nobody has counted them
            row = replace(row, state="preparing")
        progress = self._engine.jobs.progress_of("snapshot", row.id) if row.state == "preparing" else None
        return ended_account(row, progress)

    async def _live_account(self, campaign: Running) -> dict[str, Any]:
        leases, settled = list(campaign.leases.values()), campaign.settled
        # A lease's ledger is looked up in the thread: after a failed sync that very thread puts another in its place.
        counts: Counts = await self._engine.work(lambda: count_open(settled, (lease.ledger for lease in leases)))
        now = time.monotonic()
        rate = rate_of(campaign.samples, now, self._engine.sent_by(campaign))
        limit = self._engine.pacing.binding(campaign) if campaign.state == "running" else None
        return account_of(campaign, counts, rate, limit)

    # what is done to them

    async def create(self, spec: CampaignSpec) -> int:
        """Keep a draft; a draft of the same name is replaced. Returns its id.

        Raises EcmError: unknown_relay, from_not_allowed, campaign_exists (it runs), campaign_ended.
        """
        self._engine.relays.of(spec)
        async with self.turn:
            number = await self._keep_draft(spec)
        self._engine.events.publish("campaign", "campaign.created", campaign=number, data={"name": spec.name})
        return number

    async def _keep_draft(self, spec: CampaignSpec) -> int:
        old = await self._engine.store_call(store_campaigns.get, spec.name)
        if old is None:
            number = await self._engine.store_call(store_campaigns.create, spec.name, spec.to_map(), self._now())
        elif old.state == "draft":
            number = old.id
            await self._engine.store_call(store_campaigns.replace_draft, number, spec.to_map(), self._now())
        elif old.state in ("finished", "cancelled"):
            raise _ended(old)
        else:
            raise EcmError("campaign_exists", f"campaign `{spec.name}` is {old.state} (id {old.id})", field="name")
        return int(number)

    async def launch(self, number: int) -> None:
        """Begin to prepare a draft: check it, snapshot its audience, then run. `checked` waits for the end of that."""
        async with self.turn:
            row = await self._engine.store_call(store_campaigns.get, number)
            if row is None or row.state != "draft":
                raise _wrong_state("launch", "a draft", None if row is None else row.state)
            await self.set_state(number, "preparing", None, launched=self._now())
            self.preparing.prepare(number, CampaignSpec.from_map(row.spec))

    async def checked(self, number: int) -> None:
        """Wait until a campaign has left `preparing`. Raises the EcmError that sent it back to draft."""
        await self.preparing.checked(number)

    async def adopt(self, row: Any) -> None:
        """Take a campaign whose shards are ready into memory: after its snapshot, at a start, or to retry people."""
        spec = CampaignSpec.from_map(row.spec)
        shards = await self._engine.store_call(store_campaigns.shards, row.id)
        policy = "hold" if row.state == "cancelled" else spec.uncertain
        states = await self._engine.work(lambda: self._engine.recovery.shards(row.id, shards, policy))
        await self.again.finish(row, states)
        origin = await self._engine.work(lambda: origin_of(self._engine.state, self._engine.instance, row.id, spec))
        relays, barred = self._engine.relays.routes(origin)
        campaign = Running(
            id=row.id,
            name=row.name,
            weight=spec.weight,
            priority=spec.priority,
            uncertain=spec.uncertain,
            give_up_s=spec.give_up_s or self._engine.settings.retry.give_up_s,
            breaker=spec.breaker,
            sustained=sustained(spec.rate),
            gapped=bool(spec.rate.wait_ms or spec.rate.cooldown_ms),
            relays=relays,
            barred=barred,
            origin=origin,
            shards={state.number: state for state in states},
            state=row.state if row.state in (*ACTIVE, "cancelled") else "running",
            cancelling=row.state == "cancelled",
            reason=row.reason if row.state in ACTIVE else None,
            facts={**(row.counts or {}), "created": row.created, "launched": row.launched},
            samples=deque(maxlen=24),
        )
        for state in states:
            campaign.settle(state, state.counts)
            campaign.file(state)
        peers = [c.passed for c in self.running.values() if c.priority == campaign.priority]
        campaign.passed = min(peers, default=0.0)  # a newcomer starts level: it owes no past, nor is it owed one
        await self._engine.pacing.adopt(campaign, spec.rate)  # before anybody can lease it: limits come first
        self.running[row.id] = campaign
        await self.conclude_if_done(campaign)
        self._engine.wake()

    async def pause(self, number: int) -> dict[str, Any]:
        """Stop sending a campaign. The account counts what is still owed a reply as in_flight."""
        await self.preparing.taken_up(number)
        async with self.turn:
            campaign = self.running.get(number)
            if campaign is None or campaign.state not in SENDING:
                raise _wrong_state("pause", "a running campaign", await self.state(number))
            # Also where the store cannot be written: mail must stop when somebody says so.
            await self._say(campaign, "paused", self._pause(campaign, "paused", "paused by the operator"))
        await self._stop_leases(campaign, RETURN)
        return await self._live_account(campaign)

    async def trip(self, campaign: Running, verdict: Verdict) -> None:
        """Pause a campaign whose breaker has tripped, and say which."""
        async with self.turn:
            if campaign.state not in SENDING or campaign.ended:
                return
            log.error("campaign tripped", campaign=campaign.id, breaker=verdict.name, reason=verdict.message)
            await self._say(campaign, "paused", self._pause(campaign, "breaker", verdict.message))
        await self._stop_leases(campaign, RETURN)

    def _pause(self, campaign: Running, code: str, message: str) -> dict[str, Any]:
        hint = f"ctl campaign resume {campaign.id}"
        return {"code": code, "message": message, "hint": hint, "since": self._now_text()}

    async def resume(self, number: int) -> dict[str, Any]:
        """Let a paused campaign go on."""
        await self.preparing.taken_up(number)
        async with self.turn:
            campaign = self.running.get(number)
            if campaign is None or campaign.state != "paused":
                raise _wrong_state("resume", "a paused campaign", await self.state(number))
            campaign.judged = self._engine.tally(campaign)  # mended, we trust: the breaker begins anew
            await self.set_state(number, "running", None)
        self._engine.wake()
        return await self._live_account(campaign)

    async def cancel(self, number: int) -> dict[str, Any]:
        """End a campaign for good: who was not mailed is cancelled. Works in every state that has not ended."""
        await self.preparing.taken_up(number)
        async with self.turn:
            campaign = self.running.get(number)
            if campaign is None:
                await self._cancel_unlaunched(number)
            else:
                await self.set_state(number, "cancelled", None)  # its time of end follows with the last conclusion
                campaign.cancelling = True
        if campaign is None:
            self._engine.jobs.cancel_for(number)
            return await self.account(number)
        await self._stop_leases(campaign, CANCEL)
        self._engine.task(self._conclude_cancel(campaign, done := asyncio.Event()))
        with contextlib.suppress(TimeoutError):  # thousands of idle shards take longer; nobody in them is mailed
            await asyncio.wait_for(done.wait(), CANCEL_S)
        return await self.account(number)

    async def retry(self, number: int, states: Sequence[str]) -> dict[str, Any]:
        """Try people again who are in these states: {"retried", "campaign"}."""
        return await self.again.retry(number, states)

    async def why(self, number: int) -> dict[str, Any]:
        """What holds a campaign back: {"campaign", "state", "causes"}."""
        return await why(self._engine, number)

    async def _conclude_cancel(self, campaign: Running, done: asyncio.Event) -> None:
        try:
            await self._cancel_idle(campaign)
        finally:
            done.set()
        await self.conclude_if_done(campaign)

    async def _cancel_idle(self, campaign: Running) -> None:
        idle = [s for s in campaign.shards.values() if s.phase is Phase.IDLE and not s.concluded]
        await self._engine.work_on_idle(campaign, idle, lambda ledger: ledger.cancel_idle(int(self._now())))

    async def _cancel_unlaunched(self, number: int) -> None:
        state = await self.state(number)
        if state not in ("draft", "preparing"):
            raise EcmError("wrong_state", f"cannot cancel: it is {state or 'unknown'} already", field="campaign")
        await self.set_state(number, "cancelled", None, finished=self._now())

    async def _stop_leases(self, campaign: Running, action: int) -> None:
        """Order every lease of a campaign back and wait until no holder can hand over another MAIL."""
        leases = list(campaign.leases.values())
        for lease in leases:
            self._engine.leases.order(lease, action)
        deadline = time.monotonic() + ORDER_SEEN_S
        while time.monotonic() < deadline:
            unseen = [ls for ls in leases if ls.number in self._engine.leases.open and not self._engine.has_seen(ls)]
            if not unseen:
                return
            await asyncio.sleep(0.005)

    async def conclude_if_done(self, campaign: Running) -> None:
        """End a campaign whose last recipient has concluded."""
        if campaign.may_end and not campaign.concluded:
            await self._cancel_idle(campaign)  # shards that were being worked at when the cancel came
        if not campaign.concluded:
            return
        async with self.turn:
            if campaign.concluded and not campaign.ended:
                await self._end(campaign)

    async def _end(self, campaign: Running) -> None:
        state = "cancelled" if campaign.cancelling else "finished"
        account = account_of(campaign, campaign.settled, 0.0, None)
        try:
            await self._engine.store_call(store_campaigns.finish, campaign.id, state, account, self._now())
        except EcmError as error:  # the next round tries again
            self._engine.on_fault(campaign, error.message)
            return
        campaign.ended = True
        del self.running[campaign.id]  # only now: till then its account is the one in memory
        await self._engine.pacing.forget(campaign)
        names = ("audience", "sent", "bounced", "failed", "suppressed", "cancelled", "uncertain")
        log.info("campaign ended", campaign=campaign.id, state=state, **{name: account[name] for name in names})
        final = await self.account(campaign.id)
        self._engine.events.publish("campaign", f"campaign.{state}", campaign=campaign.id, data=final)

    async def waiting(self, campaign: Running, cause: tuple[str, str, str] | None) -> None:
        """Say that a campaign waits, and for what (code, message, hint); None: it goes on. One that is paused stays so.

        What it waits for may change meanwhile, and its reason with it. A hint may count down: it alone is not kept.
        """
        async with self.turn:
            if campaign.ended or campaign.state not in SENDING:
                return
            if cause is None:
                if campaign.state == "waiting":
                    await self._say(campaign, "running", None)
                return
            code, message, hint = cause
            told = campaign.reason or {}
            same = campaign.state == "waiting" and told.get("code") == code
            since = told["since"] if same else self._now_text()
            reason = {"code": code, "message": message, "hint": hint, "since": since}
            if same and told["message"] == message:
                campaign.reason = reason
            else:
                await self._say(campaign, "waiting", reason)

    async def _say(self, campaign: Running, state: str, reason: dict[str, Any] | None) -> None:
        """Change a state without being asked to. What the disk does not take now stands in memory, which is enough."""
        try:
            await self.set_state(campaign.id, state, reason)
        except EcmError as error:
            log.error("state not kept", campaign=campaign.id, state=state, reason=error.message)
            campaign.state, campaign.reason = state, reason

    async def check(self, spec: CampaignSpec) -> dict[str, Any]:
        """What a launch would say, without one: {"ok", "errors", "warnings", counts}."""
        errors: list[dict[str, Any]] = []
        relays: list[tuple[str, int]] = []
        try:
            relays = self._engine.relays.of(spec)
        except EcmError as error:
            errors.append(error.to_map())
        job = await self._engine.jobs.start("check", self.preparing.snapshot_args(0, spec, relays), None)
        result = await self._engine.jobs.result(job)
        errors += result.get("errors", [])
        return {**result, "ok": not errors, "errors": errors}

    # helpers

    async def set_state(self, number: int, state: str, reason: dict[str, Any] | None, **times: float | None) -> None:
        await self._engine.store_call(store_campaigns.set_state, number, state, reason, **times)
        campaign = self.running.get(number)
        if campaign is not None:
            campaign.state, campaign.reason = state, reason
        self._engine.events.publish("campaign", f"campaign.{state}", campaign=number, data={"reason": reason})

    async def state(self, number: int) -> str | None:
        row = await self._engine.store_call(store_campaigns.get, number)
        return None if row is None else str(row.state)

    def _now(self) -> float:
        return self._engine.clock.now_ns() / 1e9

    def _now_text(self) -> str | None:
        return rfc3339(self._now())


def _ended(row: Any) -> EcmError:
    sent = (row.counts or {}).get("sent")
    what = f"campaign `{row.name}` was {row.state} on {rfc3339(row.finished)}"
    return EcmError(
        "campaign_ended",
        f"{what}, {sent:,} sent" if sent is not None else what,
        field="name",
        hint="a name belongs to one campaign: give the new one another `name`",
    )


def _wrong_state(verb: str, wanted: str, state: str | None) -> EcmError:
    return EcmError("wrong_state", f"cannot {verb}: it is {state or 'unknown'}, not {wanted}", field="campaign")
