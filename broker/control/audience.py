"""Requests about lists. The loader alone writes `audience.db`: what changes a list is a job of its."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from broker.contract.messages import AudienceImport, AudienceUnsubscribe, ListReference, Nothing
from broker.contract.timefmt import rfc3339
from broker.control.seam import Engine, Handler
from broker.store import audience

__all__ = ["HANDLERS"]


async def audience_import(engine: Engine, args: AudienceImport) -> dict[str, Any]:
    """Start the import."""
    return {"job": await engine.jobs.start("import", args.to_map())}


async def audience_lists(engine: Engine, _args: Nothing) -> dict[str, Any]:
    """All lists."""
    rows = await asyncio.to_thread(audience.lists, engine.state.audience_db)
    return {"lists": [_told(row) for row in rows]}


async def audience_show(engine: Engine, args: ListReference) -> dict[str, Any]:
    """One list."""
    return _told(await asyncio.to_thread(audience.show, engine.state.audience_db, args.list))


async def audience_unsubscribe(engine: Engine, args: AudienceUnsubscribe) -> dict[str, Any]:
    """Take somebody off a list; answered when the loader has done it."""
    job = await engine.jobs.start("unsubscribe", args.to_map())
    return await engine.jobs.result(job)


def _told(row: audience.ListRow) -> dict[str, Any]:
    return {**row.to_map(), "created": rfc3339(row.created), "changed": rfc3339(row.changed)}


HANDLERS: Final[dict[str, Handler]] = {
    "audience.import": audience_import,
    "audience.lists": audience_lists,
    "audience.show": audience_show,
    "audience.unsubscribe": audience_unsubscribe,
}
