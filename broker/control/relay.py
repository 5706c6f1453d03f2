"""Requests about relays: settings and state of each, and a check that speaks with them in a process of its own."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from broker.contract.messages import Nothing, RelayCheck
from broker.control.seam import Engine, Handler

__all__ = ["HANDLERS"]


async def relay_list(engine: Engine, _args: Nothing) -> dict[str, Any]:
    """What each relay is set to, and what is known of it now."""
    known = {relay["name"]: relay for relay in (await engine.stats_map())["relays"]}
    settings = engine.settings.to_public_map()
    relays = [{**settings["relays"][name], **known.get(name, {})} for name in settings["relays"]]
    return {"relays": relays, "pools": settings["pools"]}


async def relay_check(engine: Engine, args: RelayCheck) -> dict[str, Any]:
    """One relay, or all."""
    names = list(engine.settings.relays) if args.relay is None else [args.relay]
    results = await asyncio.gather(*(engine.relays.check(name) for name in names))
    return {"ok": all(result["ok"] for result in results), "relays": results}


HANDLERS: Final[dict[str, Handler]] = {"relay.list": relay_list, "relay.check": relay_check}
