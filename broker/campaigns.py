"""The life of a campaign: draft, preparing, running, waiting, paused, finished or cancelled.

Decides what may follow what, and keeps store, memory and shards in step; it hands shards to nobody (`scheduler`,
`leases`) and counts nothing on the loop (`account`).

Invariants
- What the store says survives; every change of state is committed there before it is answered.
- A campaign leaves `preparing` for `running` in one transaction with its shards, or goes back to `draft` with its
  reason and without files.
- Pause and cancel answer when no further MAIL can leave: every holder has seen the order, or has returned its lease.
"""

import asyncio
import shutil
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from broker.account import account_of, count_open, ended_account, rate_of
from broker.contract.campaign import CampaignSpec
from broker.contract.errors import EcmError
from broker.contract.log import log
from broker.contract.timefmt import rfc3339
from broker.leases import CANCEL, RETURN
from broker.running import Phase, Running
from broker.store import campaigns as store_campaigns
from shm.files.ledger import Counts

if TYPE_CHECKING:
    from broker.engine import Engine

__all__ = ["Campaigns"]

ORDER_SEEN_S = 1.0  # a holder's loop beats every 100 ms; one that does not within this is hung, and being killed
ACTIVE = ("running", "waiting", "paused")


class Campaigns:
    """All campaigns of the instance, by what may be done to them."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self.running: dict[int, Running] = {}
        self._preparing: dict[int, asyncio.Task[None]] = {}

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
        rows = await self._engine.store_call(store_campaigns.listing, limit)
        objects = []
        for row in rows:
            if since_s is not None and row.finished is not None and row.finished < since_s:
                continue
            # Who was under way when the rows were read may have ended since, or be in memory only now.
            under_way = row.id in self.running or row.state in ACTIVE
            objects.append(await self.account(row.id) if under_way else self._idle_account(row))
        return objects

    def _idle_account(self, row: Any) -> dict[str, Any]:
        if row.state in ACTIVE:  # its files are ready and are being taken up: till then nobody has counted them
            row = replace(row, state="preparing")
        progress = self._engine.jobs.progress_of("snapshot", row.id) if row.state == "preparing" else None
        return ended_account(row, progress)

    async def _live_account(self, campaign: Running) -> dict[str, Any]:
        ledgers = [lease.ledger for lease in campaign.leases.values()]
        settled = campaign.settled
        counts: Counts = await self._engine.work(lambda: count_open(settled, ledgers))
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
        self._engine.events.publish("campaign", "campaign.created", campaign=number, data={"name": spec.name})
        return int(number)

    async def launch(self, number: int) -> None:
        """Begin to prepare a draft: check it, snapshot its audience, then run. `checked` waits for the end of that."""
        row = await self._engine.store_call(store_campaigns.get, number)
        if row is None or row.state != "draft":
            raise _wrong_state("launch", "a draft", None if row is None else row.state)
        await self._set_state(number, "preparing", None, launched=self._now())
        self._prepare(number, CampaignSpec.from_map(row.spec))

    def prepare_again(self, row: Any) -> None:
        """Take up a snapshot that an earlier broker did not see the end of."""
        self._prepare(row.id, CampaignSpec.from_map(row.spec))

    def _prepare(self, number: int, spec: CampaignSpec) -> None:
        task = asyncio.get_running_loop().create_task(self._prepare_all(number, spec), name=f"prepare {number}")
        self._preparing[number] = task
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def checked(self, number: int) -> None:
        """Wait until a campaign has left `preparing`. Raises the EcmError that sent it back to draft."""
        task = self._preparing.get(number)
        if task is not None:
            await asyncio.shield(task)

    async def _prepare_all(self, number: int, spec: CampaignSpec) -> None:
        try:
            relays = self._engine.relays.of(spec)
            job = await self._engine.jobs.start("snapshot", self._snapshot_args(number, spec, relays), None)
            (result, _) = await asyncio.gather(self._engine.jobs.result(job), self._engine.relays.reachable(relays))
            await self._engine.store_call(store_campaigns.ready, number, result["shards"], _facts(result))
        except EcmError as error:
            await self._back_to_draft(number, error)
            raise
        finally:
            self._preparing.pop(number, None)
        # Also one that was cancelled meanwhile: its people are then counted as cancelled.
        await self.adopt(await self._engine.store_call(store_campaigns.get, number))

    def _snapshot_args(self, number: int, spec: CampaignSpec, relays: list[tuple[str, int]]) -> dict[str, Any]:
        return {
            "campaign": number,
            "spec": spec.to_map(),
            "relays": [list(relay) for relay in relays],
            "retry": self._engine.settings.retry.to_map(),
            "sender_count": self._engine.sender_count,
            "instance": self._engine.instance,
        }

    async def _back_to_draft(self, number: int, error: EcmError) -> None:
        directory = self._engine.state.campaign(number)
        row = await self._engine.store_call(store_campaigns.get, number)
        if row.state == "preparing":
            reason = {name: value for name, value in error.to_map().items() if name != "exit"}
            await self._set_state(number, "draft", reason | {"since": self._now_text()})
        await self._engine.work(lambda: _remove_shards(directory))
        log.warning("campaign not launched", campaign=number, code=error.code, reason=error.message)

    async def adopt(self, row: Any) -> Running:
        """Take a campaign whose shards are ready into memory: after its snapshot, or at a start of the engine."""
        spec = CampaignSpec.from_map(row.spec)
        shards = await self._engine.store_call(store_campaigns.shards, row.id)
        policy = "hold" if row.state == "cancelled" else spec.uncertain
        states = await self._engine.work(lambda: self._engine.recovery.shards(row.id, shards, policy))
        campaign = Running(
            id=row.id,
            name=row.name,
            weight=spec.weight,
            priority=spec.priority,
            uncertain=spec.uncertain,
            give_up_s=spec.give_up_s or self._engine.settings.retry.give_up_s,
            gapped=bool(spec.rate.wait_ms or spec.rate.cooldown_ms),
            relays=[(self._engine.relays.index(name), weight) for name, weight in self._engine.relays.of(spec)],
            shards={state.number: state for state in states},
            state=row.state if row.state in (*ACTIVE, "cancelled") else "running",
            cancelling=row.state == "cancelled",
            reason=row.reason if row.state in ACTIVE else None,
            facts={"created": row.created, "launched": row.launched, **(row.counts or {})},
            samples=deque(maxlen=24),
        )
        for state in states:
            campaign.settle(state, state.counts)
            campaign.file(state)
        peers = [c.passed for c in self.running.values() if c.priority == campaign.priority]
        campaign.passed = min(peers, default=0.0)  # a newcomer starts level: it owes no past, nor is it owed one
        self.running[row.id] = campaign
        await self._engine.pacing.adopt(campaign, spec.rate)
        if row.state == "preparing":
            await self._set_state(row.id, "running", None)
        if campaign.cancelling:
            await self._cancel_idle(campaign)
        await self.conclude_if_done(campaign)
        self._engine.wake()
        return campaign

    async def pause(self, number: int) -> dict[str, Any]:
        """Stop sending a campaign. The account counts what is still owed a reply as in_flight."""
        campaign = self.running.get(number)
        if campaign is None or campaign.state == "paused":
            raise _wrong_state("pause", "a running campaign", await self._state(number))
        reason = {"code": "paused", "message": "paused by the operator", "hint": f"ctl campaign resume {number}"}
        await self._set_state(number, "paused", reason | {"since": self._now_text()})
        await self._stop_leases(campaign, RETURN)
        return await self._live_account(campaign)

    async def resume(self, number: int) -> dict[str, Any]:
        """Let a paused campaign go on."""
        campaign = self.running.get(number)
        if campaign is None or campaign.state != "paused":
            raise _wrong_state("resume", "a paused campaign", await self._state(number))
        await self._set_state(number, "running", None)
        self._engine.wake()
        return await self._live_account(campaign)

    async def cancel(self, number: int) -> dict[str, Any]:
        """End a campaign for good: who was not mailed is cancelled. Works in every state that has not ended."""
        campaign = self.running.get(number)
        if campaign is None or campaign.ended:
            return await self._cancel_unlaunched(number)
        campaign.cancelling = True
        await self._set_state(number, "cancelled", None)  # its time of end follows with the last conclusion
        await self._stop_leases(campaign, CANCEL)
        await self._cancel_idle(campaign)
        account = await self._live_account(campaign)
        await self.conclude_if_done(campaign)
        return account

    async def _cancel_idle(self, campaign: Running) -> None:
        idle = [s for s in campaign.shards.values() if s.phase is Phase.IDLE and not s.concluded]
        await self._engine.work_on_idle(campaign, idle, lambda ledger: ledger.cancel_idle(int(self._now())))

    async def _cancel_unlaunched(self, number: int) -> dict[str, Any]:
        state = await self._state(number)
        if state not in ("draft", "preparing"):
            raise _wrong_state("cancel", "a campaign that has not ended", state)
        await self._set_state(number, "cancelled", None, finished=self._now())
        task = self._preparing.get(number)
        if task is not None:
            await self._engine.jobs.cancel_for(number)
        return await self.account(number)

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
        if not campaign.concluded or campaign.ended:
            return
        campaign.ended = True
        state = "cancelled" if campaign.cancelling else "finished"
        account = account_of(campaign, campaign.settled, 0.0, None)
        await self._engine.store_call(store_campaigns.finish, campaign.id, state, account, self._now())
        del self.running[campaign.id]  # only now: till then its account is the one in memory
        self._engine.pacing.forget(campaign)
        names = ("audience", "sent", "bounced", "failed", "suppressed", "cancelled", "uncertain")
        log.info("campaign ended", campaign=campaign.id, state=state, **{name: account[name] for name in names})
        self._engine.events.publish("campaign", f"campaign.{state}", campaign=campaign.id, data=account)

    async def waiting(self, campaign: Running, reason: dict[str, Any] | None) -> None:
        """Say that a campaign waits (with the reason) or goes on (None). The state of one that is paused stays."""
        state = "running" if reason is None else "waiting"
        if campaign.state in ("running", "waiting") and (campaign.state, campaign.reason) != (state, reason):
            await self._set_state(campaign.id, state, reason)

    async def check(self, spec: CampaignSpec) -> dict[str, Any]:
        """What a launch would say, without one: {"ok", "errors", "warnings", counts}."""
        errors: list[dict[str, Any]] = []
        relays: list[tuple[str, int]] = []
        try:
            relays = self._engine.relays.of(spec)
        except EcmError as error:
            errors.append(error.to_map())
        job = await self._engine.jobs.start("check", self._snapshot_args(0, spec, relays), None)
        result = await self._engine.jobs.result(job)
        errors += result.get("errors", [])
        return {**result, "ok": not errors, "errors": errors}

    # helpers

    async def _set_state(self, number: int, state: str, reason: dict[str, Any] | None, **times: float) -> None:
        await self._engine.store_call(store_campaigns.set_state, number, state, reason, **times)
        campaign = self.running.get(number)
        if campaign is not None:
            campaign.state, campaign.reason = state, reason
        self._engine.events.publish("campaign", f"campaign.{state}", campaign=number, data={"reason": reason})

    async def _state(self, number: int) -> str | None:
        row = await self._engine.store_call(store_campaigns.get, number)
        return None if row is None else str(row.state)

    def _now(self) -> float:
        return self._engine.clock.now_ns() / 1e9

    def _now_text(self) -> str | None:
        return rfc3339(self._now())


def _facts(result: dict[str, Any]) -> dict[str, Any]:
    names = ("rows", "rejected", "duplicates", "rejects_file", "audience", "suppressed", "suppressed_position")
    return {name: result.get(name) for name in names}


def _remove_shards(directory: Any) -> None:
    """Remove what a failed snapshot left, but keep the side file that says which rows were wrong."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.name == "rejects.csv":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


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
