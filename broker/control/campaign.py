"""Requests about campaigns. What may follow what is decided in `broker/campaigns.py`, not here."""

from __future__ import annotations

import asyncio
from pathlib import PurePosixPath
from typing import Any, Final
from weakref import WeakValueDictionary

from broker.contract.campaign import CampaignSpec, parse_campaign, parse_campaign_all
from broker.contract.errors import EcmError
from broker.contract.messages import CampaignContent, CampaignList, CampaignReference, Launch, Retry, Send
from broker.control.seam import Engine, Handler
from broker.store import campaigns as store_campaigns
from broker.store.campaigns import UNFINISHED, CampaignRow

__all__ = ["HANDLERS"]

_sending: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by name, while somebody sends it


async def campaign_create(engine: Engine, args: CampaignContent) -> dict[str, Any]:
    """Keep a draft."""
    return {"campaign": await engine.campaigns.create(await _spec(args))}


async def campaign_send(engine: Engine, args: Send) -> dict[str, Any]:
    """Create and launch, or follow the one of that name that is under way."""
    spec = await _spec(args)
    async with _sending.setdefault(spec.name, asyncio.Lock()):  # of two who send one name the slower one follows
        row: CampaignRow | None = await engine.store_call(store_campaigns.get, spec.name)
        if row is not None and row.state in UNFINISHED:
            number, followed = row.id, True
        else:
            number, followed = await engine.campaigns.create(spec), False
            await engine.campaigns.launch(number)
    if args.checked:
        await engine.campaigns.checked(number)
    return {"campaign": number, "followed": followed}


async def campaign_list(engine: Engine, args: CampaignList) -> dict[str, Any]:
    """Newest first."""
    return {"campaigns": await engine.campaigns.listing(limit=args.limit)}


async def campaign_show(engine: Engine, args: CampaignReference) -> dict[str, Any]:
    """The campaign object."""
    return await engine.campaigns.account(await engine.campaigns.resolve(args.campaign))


async def campaign_check(engine: Engine, args: CampaignContent) -> dict[str, Any]:
    """All that is wrong: with the file, or else with the audience and its messages."""
    errors = await asyncio.to_thread(parse_campaign_all, args.text, args.file, args.attached, args.recipients)
    if errors:
        return {"ok": False, "errors": [error.to_map() for error in errors], "warnings": []}
    return await engine.campaigns.check(await _spec(args))


async def campaign_launch(engine: Engine, args: Launch) -> dict[str, Any]:
    """Launch a draft."""
    number = await engine.campaigns.resolve(args.campaign)
    await engine.campaigns.launch(number)
    if args.checked:
        await engine.campaigns.checked(number)
    return await engine.campaigns.account(number)


async def campaign_pause(engine: Engine, args: CampaignReference) -> dict[str, Any]:
    """Stop sending."""
    return await engine.campaigns.pause(await engine.campaigns.resolve(args.campaign))


async def campaign_resume(engine: Engine, args: CampaignReference) -> dict[str, Any]:
    """Go on."""
    return await engine.campaigns.resume(await engine.campaigns.resolve(args.campaign))


async def campaign_cancel(engine: Engine, args: CampaignReference) -> dict[str, Any]:
    """End for good."""
    return await engine.campaigns.cancel(await engine.campaigns.resolve(args.campaign))


async def campaign_retry(engine: Engine, args: Retry) -> dict[str, Any]:
    """Try people again."""
    return await engine.campaigns.retry(await engine.campaigns.resolve(args.campaign), args.states)


async def campaign_why(engine: Engine, args: CampaignReference) -> dict[str, Any]:
    """What holds it back."""
    return await engine.campaigns.why(await engine.campaigns.resolve(args.campaign))


async def _spec(args: CampaignContent) -> CampaignSpec:
    """The campaign that a request carries, parsed beside the loop: its templates may be megabytes."""
    spec = await asyncio.to_thread(parse_campaign, args.text, args.file, args.attached, args.recipients)
    if spec.recipients is not None and not PurePosixPath(spec.recipients).is_absolute():
        raise EcmError(
            "invalid_value",
            f"the path of the recipients file must be absolute: `{spec.recipients}`",
            field="recipients",
            hint="the engine does not know your directory; send the absolute path as `recipients`",
        )
    return spec


HANDLERS: Final[dict[str, Handler]] = {
    "campaign.create": campaign_create,
    "campaign.send": campaign_send,
    "campaign.list": campaign_list,
    "campaign.show": campaign_show,
    "campaign.check": campaign_check,
    "campaign.launch": campaign_launch,
    "campaign.pause": campaign_pause,
    "campaign.resume": campaign_resume,
    "campaign.cancel": campaign_cancel,
    "campaign.retry": campaign_retry,
    "campaign.why": campaign_why,
}
