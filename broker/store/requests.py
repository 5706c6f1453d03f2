"""Replies kept under the idempotency key of their request, so that asking again changes nothing.

A client that lost the answer (its own death, or the broker's) repeats the request under the same key and gets the
reply it would have had.

Invariants
- A key stands for one request: another operation or other arguments under it are refused.
- At most `REQUESTS_KEPT` replies are kept; the oldest go first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import delete, insert, select

from broker.contract.codec import pack, unpack
from broker.contract.errors import EcmError
from broker.store.schema import requests
from broker.store.store import Store

__all__ = ["REQUESTS_KEPT", "digest", "keep", "kept"]

REQUESTS_KEPT: Final = 10_000
"""A client asks again within seconds; ten thousand changes are hours of the busiest script."""


def digest(op: str, args: Mapping[str, Any]) -> bytes:
    """What tells one request from another: 32 bytes."""
    return hashlib.sha256(pack([op, sorted(args.items())])).digest()


def kept(store: Store, key: str, request: bytes) -> dict[str, Any] | None:
    """The reply {ok, result | error} kept under `key`, or None.

    Raises EcmError `bad_request` if the key was used for another request.
    """
    with store.begin() as connection:
        row = connection.execute(select(requests).where(requests.c.key == key)).one_or_none()
    if row is None:
        return None
    if row.request != request:
        raise EcmError(
            "bad_request",
            f"this key was used for another request: `{key}`",
            field="key",
            hint="a new key for each change; the same key only to ask again",
        )
    reply: dict[str, Any] = unpack(row.reply)
    return reply


def keep(store: Store, key: str, request: bytes, reply: Mapping[str, Any], now_s: float) -> None:
    """Keep a reply; the first one under a key stays."""
    values = {"key": key, "request": request, "reply": pack(dict(reply)), "created": now_s}
    oldest_kept = (
        select(requests.c.created).order_by(requests.c.created.desc()).limit(1).offset(REQUESTS_KEPT - 1)
    ).scalar_subquery()
    with store.begin() as connection:
        connection.execute(insert(requests).prefix_with("OR IGNORE").values(values))
        connection.execute(delete(requests).where(requests.c.created < oldest_kept))  # null while there are fewer
