"""Requests about suppressed addresses. Listings are read beside the store's thread: a long one delays no change."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

from broker.contract.messages import SuppressAdd, SuppressImport, SuppressList, SuppressRemove
from broker.contract.timefmt import rfc3339
from broker.control.seam import Engine, Handler
from broker.store import suppression
from shm.address import normalise

__all__ = ["HANDLERS"]


async def suppress_add(engine: Engine, args: SuppressAdd) -> dict[str, Any]:
    """Every sender can see them when this is answered."""
    return await engine.suppression.add(args.addresses, args.reason, args.source)


async def suppress_remove(engine: Engine, args: SuppressRemove) -> dict[str, Any]:
    """They may be mailed again."""
    return await engine.suppression.remove(args.addresses)


async def suppress_list(engine: Engine, args: SuppressList) -> dict[str, Any]:
    """Newest first."""
    return await asyncio.to_thread(_page, engine.state.store_db, args)


async def suppress_import(engine: Engine, args: SuppressImport) -> dict[str, Any]:
    """Start the import."""
    return {"job": await engine.suppression.import_(args.path, args.reason)}


def _page(store_db: Path, args: SuppressList) -> dict[str, Any]:
    rows = suppression.listing(store_db, normalise(args.prefix), args.limit, args.before)
    return {
        "total": suppression.count(store_db),
        "suppressions": [
            {
                "address": row.address,
                "kind": row.kind,
                "reason": row.reason,
                "source": row.source,
                "created": rfc3339(row.created),
            }
            for row in rows
        ],
        "next": rows[-1].position if len(rows) == args.limit else None,
    }


HANDLERS: Final[dict[str, Handler]] = {
    "suppress.add": suppress_add,
    "suppress.remove": suppress_remove,
    "suppress.list": suppress_list,
    "suppress.import": suppress_import,
}
