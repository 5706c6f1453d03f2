"""Why a campaign is not faster, or does not send at all: what holds it back, the most binding first, in words.

Looks and says, decides nothing. What it says comes from what the broker holds anyway; the replies of people who wait
for another attempt are read from ledgers in the files thread, a shard at a time and within a bound, so that neither
the loop nor a hand-over waits for it.

A cause is {code, message, hint, since, until}: since and until are RFC 3339 or None, hint may be None.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Protocol

from broker.arena_tables import Tables
from broker.breaker import Tally
from broker.contract.paths import StateDir
from broker.contract.settings import Settings
from broker.contract.timefmt import rfc3339
from broker.refusals import refusals
from broker.relay_lately import SPAN_S
from broker.relays import Relays
from broker.running import SENDING, Running
from broker.store import campaigns as store_campaigns
from broker.supervisor import Supervisor

__all__ = ["why"]

Cause = dict[str, Any]

THROTTLED_SHARE: Final = 0.01  # of what a relay answered lately: below it is noise
BREAKER_NEAR: Final = 0.75  # of a breaker's limit
REPLIES_SHOWN: Final = 3
_MODES: Final = {1: "lock-step", 2: "pipelining"}


class _Campaigns(Protocol):
    """What this module asks of the campaigns."""

    running: dict[int, Running]

    async def account(self, number: int) -> dict[str, Any]: ...


class Engine(Protocol):
    """What this module asks of the engine."""

    state: StateDir
    instance: str
    settings: Settings
    tables: Tables
    relays: Relays
    supervisor: Supervisor

    @property
    def campaigns(self) -> _Campaigns: ...
    def work(self, function: Callable[[], Any]) -> Awaitable[Any]: ...
    def store_call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]: ...
    def now_s(self) -> int: ...
    def tally(self, campaign: Running) -> Tally: ...


def cause(code: str, message: str, hint: str | None = None, **times: str | None) -> Cause:
    """One cause. times: since, until."""
    return {
        "code": code, "message": message, "hint": hint, "since": times.get("since"), "until": times.get("until"),
    }  # fmt: skip


async def why(engine: Engine, number: int) -> dict[str, Any]:
    """{"campaign", "state", "causes"} of a campaign that exists; there is always a cause."""
    campaign = engine.campaigns.running.get(number)
    account = await engine.campaigns.account(number)
    if campaign is None:
        row = await engine.store_call(store_campaigns.get, number)
        causes = [_not_under_way(account, row)]
    elif account["state"] in SENDING:
        causes = [*_reason(account), *await _under_way(engine, campaign, account)]
    else:
        causes = list(_reason(account)) or [_cancelled(account)]
    return {"campaign": number, "state": account["state"], "causes": causes}


def _reason(account: dict[str, Any]) -> Iterator[Cause]:
    reason = account["reason"]
    if reason:
        yield cause(reason["code"], reason["message"], reason.get("hint"), since=reason.get("since"))


def _not_under_way(account: dict[str, Any], row: Any) -> Cause:
    """Of a draft, one that is being prepared, or one that has ended."""
    name, state, reason = account["name"], account["state"], account["reason"]
    if state == "draft":
        if reason:
            message = f"it is a draft, since its checks failed: {reason['message']}"
            return cause(reason["code"], message, reason.get("hint"), since=reason.get("since"))
        return cause("draft", "it is a draft, and nobody has launched it", f"ctl campaign launch {name}")
    if state == "preparing":
        if reason or row.reason:
            told = reason or row.reason
            return cause(told["code"], told["message"], told.get("hint"), since=told.get("since"))
        progress = account["progress"] or {}
        rows = f", {progress['rows']:,} rows so far" if progress.get("rows") else ""
        phase = progress.get("phase") or "waiting for the loader"
        return cause("preparing", f"its recipients are being prepared: {phase}{rows}", since=account["launched"])
    if state == "cancelled":
        return _cancelled(account)
    again = (account["failed"] or 0) + (account["uncertain"] or 0)
    if not again:
        return cause("finished", "it is finished: nobody is left to mail", since=account["finished"])
    left = ", ".join(f"{account[name]:,} {name}" for name in ("failed", "uncertain") if account[name])
    hint = f"`ctl campaign retry {name} --state failed` tries them again; docs/operations.md says what that means"
    return cause("finished", f"it is finished; who did not get it: {left}", hint, since=account["finished"])


def _cancelled(account: dict[str, Any]) -> Cause:
    return cause("cancelled", "it was cancelled: nobody of it is mailed any more", since=account["finished"])


async def _under_way(engine: Engine, campaign: Running, account: dict[str, Any]) -> list[Cause]:
    """Of a campaign that may send."""
    causes = []
    if account["deferred"] and not account["pending"] and not account["in_flight"]:
        causes.append(await _only_retries(engine, campaign, account))
    elif account["state"] == "running":
        causes += [*_no_sender(engine), *_limit(account), *_others_first(engine, campaign)]
        causes += [*_connections(engine, campaign)]
    causes += [*_relays(engine, campaign, account), *_breaker(engine, campaign)]
    if not causes and account["state"] == "running":
        rate = f"{account['per_second']:,.0f}/s now"
        causes.append(cause("none", f"nothing holds it back: {rate}, limited by the machine and the relay"))
    if account["deferred"] and (account["pending"] or account["in_flight"]):
        causes.append(await _some_retries(engine, campaign, account))
    return causes


async def _only_retries(engine: Engine, campaign: Running, account: dict[str, Any]) -> Cause:
    at = account["next_attempt"]
    message = (
        f"only retries are left: {_people(account['deferred'])}, the next {_at(at)}{await _said(engine, campaign)}"
    )
    return cause("only_retries", message, "they are tried again by themselves until give_up_s is over", until=at)


async def _some_retries(engine: Engine, campaign: Running, account: dict[str, Any]) -> Cause:
    share = engine.settings.retry.share
    message = f"{_people(account['deferred'])} deferred, the next {_at(account['next_attempt'])}"
    message += f"; they take no more than {share:.0%} of the work while others wait"
    return cause("retries", message + await _said(engine, campaign), until=account["next_attempt"])


async def _said(engine: Engine, campaign: Running) -> str:
    """What relays said most often to who waits for another attempt."""
    found = await refusals(engine, campaign)
    if not found:
        return ""
    return ". Most said: " + "; ".join(f"{_times(count)} `{text}`" for text, count in found[:REPLIES_SHOWN])


def _no_sender(engine: Engine) -> Iterator[Cause]:
    if not engine.supervisor.senders():
        yield cause("no_sender", "no sender runs now: they are being replaced", "`ctl status` says why")


def _limit(account: dict[str, Any]) -> Iterator[Cause]:
    limit = account["limit"]
    if limit is None:
        return
    value = f"{limit['value']:,}" if isinstance(limit["value"], int) else f"{limit['value']:g}"
    hint = "limits of a campaign are those of its file at the launch"
    if limit["name"].startswith("relay."):
        hint = f"`rate` of the relay in ecm.toml: a limit of `{limit['name']}` holds for all campaigns together"
    yield cause("limit", f"its limit {limit['name']} = {value} is used up", hint, until=limit["until"])


def _others_first(engine: Engine, campaign: Running) -> Iterator[Cause]:
    """Campaigns that have all the senders, if this one has none and could use one."""
    if campaign.leases or campaign.due(engine.now_s()) == (None, None):
        return
    others = [c for c in engine.campaigns.running.values() if c.leases and c is not campaign]
    higher = [c for c in others if c.priority > campaign.priority]
    if higher:
        names = ", ".join(f"`{c.name}`" for c in higher[:3])
        yield cause("priority", f"the senders are busy with campaigns of a higher priority: {names}")
    elif others:
        yield cause("senders_busy", f"the senders are busy with {len(others):,} other campaigns; its turn comes")


def _connections(engine: Engine, campaign: Running) -> Iterator[Cause]:
    names = _names(engine, campaign)
    mine = [view for view in engine.relays.views() if view.name in names]
    full = [view for view in mine if view.connections_limit and view.connections >= view.connections_limit]
    if mine and len(full) == len(mine):
        each = ", ".join(f"{view.connections_limit:,} of `{view.name}`" for view in full)
        hint = "raise `connections` of the relay in ecm.toml, if its operator allows more"
        yield cause("connections", f"all connections that are allowed are in use: {each}", hint)


def _relays(engine: Engine, campaign: Running, account: dict[str, Any]) -> Iterator[Cause]:
    """Relays of the campaign that are down, slowed down, or complain; not the one that its state already names."""
    said = (account["reason"] or {}).get("message")
    for view in engine.relays.views():
        if view.name not in _names(engine, campaign):
            continue
        if view.state != "up" and view.reason != said:
            own = f"relay `{view.name}`"
            reason = (view.reason or "").removeprefix(own).removeprefix(f" ({_place(engine, view.name)})")
            words = f": {reason.removeprefix(':').strip()}" if reason else ""
            hint = f"`ctl relay check {view.name}` shows what it says"
            yield cause(f"relay_{view.state}", f"relay `{view.name}` is {view.state}{words}", hint)
        yield from _complaints(engine, view.name)


def _complaints(engine: Engine, name: str) -> Iterator[Cause]:
    """What senders heard from a relay in the last minutes: throttling, blame; a mode it broke."""
    index = engine.relays.index(name)
    uses = [engine.tables.relays.use(slot.row, index) for slot in engine.supervisor.slots if slot.kind == "sender"]
    said = engine.relays.said(index)
    for code, told, count, hint in (
        ("relay_throttles", "asked us to slow down", said.throttled, "a lower `rate`, or fewer `connections`, may be faster in the end"),  # noqa: E501
        ("relay_blames", "blamed us", said.blamed, "it is about credentials, reputation or quota: ask its operator"),
    ):  # fmt: skip
        if count > THROTTLED_SHARE * (said.accepted + count):
            message = f"relay `{name}` {told} {_times(count)} in the last {SPAN_S / 60:.0f} minutes"
            took = "1 message" if said.accepted == 1 else f"{said.accepted:,} messages"
            yield cause(code, f"{message}, and took {took}", hint)
    stepped = [_MODES[use.stepped] for use in uses if use.stepped in _MODES]
    if stepped:
        message = f"relay `{name}` broke a faster way of sending: {stepped[0]} for a while"
        yield cause("relay_stepped_down", message, f"`ctl relay check {name}` shows what it announces")


def _breaker(engine: Engine, campaign: Running) -> Iterator[Cause]:
    tally = engine.tally(campaign).minus(campaign.judged)
    if tally.attempted < campaign.breaker.after:
        return
    for name in ("sender_fault", "bounced", "deferred"):
        limit, share = getattr(campaign.breaker, name), getattr(tally, name) / tally.attempted
        if limit and share > BREAKER_NEAR * limit:
            message = (
                f"its breaker is near: {share:.1%} of {tally.attempted:,} attempts {name}, it pauses at {limit:.0%}"
            )
            yield cause("breaker_near", message, "`ctl campaign export` shows who and why")


def _names(engine: Engine, campaign: Running) -> set[str]:
    return {engine.relays.names[index] for index, _ in campaign.relays}


def _place(engine: Engine, name: str) -> str:
    relay = engine.settings.relays.get(name)
    return f"{relay.host}:{relay.port}" if relay else ""


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def _people(number: int) -> str:
    return "1 person" if number == 1 else f"{number:,} people"


def _at(at: str | None) -> str:
    now = rfc3339(time.time())
    return "is due now" if at is None or now is None or at <= now else f"at {at[:10]} {at[11:19]} UTC"
