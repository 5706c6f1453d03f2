"""The operator's retry as the store keeps it, so that one which is cut short is done to its end at the next start.

What is to be tried again stands beside the campaign's counts, in the same transaction that makes a finished campaign
running: {"states": ["failed", ...], "until_s": engine second}. It is erased once every ledger says so. What stays are
"rests": [[finished, retried], ...] in engine seconds, times in which the campaign was not under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select, update

from broker.contract.codec import pack, unpack
from broker.contract.errors import EcmError
from broker.store.campaigns import CampaignRow
from broker.store.schema import campaigns
from broker.store.store import Store

__all__ = ["Intent", "begin", "done", "intent_of"]

_KEY: Final = "retry"
_ACTIVE: Final = ("running", "waiting", "paused")


@dataclass(frozen=True, slots=True)
class Intent:
    """Whom to try again: those in `states` (failed, uncertain) who had concluded by `until_s`."""

    states: tuple[str, ...]
    until_s: int


def intent_of(row: CampaignRow) -> Intent | None:
    """The retry that is under way, None if none is. One that is cancelled tries nobody again."""
    kept = (row.counts or {}).get(_KEY)
    return Intent(tuple(kept["states"]), kept["until_s"]) if kept and row.state != "cancelled" else None


def begin(store: Store, campaign: int, states: Sequence[str], until_s: int) -> None:
    """Decide a retry; a finished campaign is running from here on, one that is under way stays as it is.

    Raises EcmError wrong_state, unknown_campaign.
    """
    with store.begin() as connection:
        row = connection.execute(
            select(campaigns.c.state, campaigns.c.counts, campaigns.c.finished).where(campaigns.c.id == campaign)
        ).one_or_none()
        if row is None:
            raise EcmError("unknown_campaign", f"no campaign has this id: {campaign}")
        if row.state not in (*_ACTIVE, "finished"):
            raise EcmError("wrong_state", f"cannot retry: it is {row.state}", field="campaign")
        counts = unpack(row.counts) if row.counts is not None else {}
        counts[_KEY] = {"states": list(states), "until_s": until_s}
        if row.state == "finished":
            counts["rests"] = [*counts.get("rests", ()), [row.finished, max(until_s, row.finished)]]
        values: dict[str, Any] = {"counts": pack(counts)}
        if row.state == "finished":
            values |= {"state": "running", "reason": None, "finished": None}
        connection.execute(update(campaigns).where(campaigns.c.id == campaign).values(values))


def done(store: Store, campaign: int, suppressed_position: int | None = None) -> None:
    """Every ledger says what was decided. `suppressed_position`: where suppressions go on from, if that has moved."""
    with store.begin() as connection:
        kept = connection.scalar(select(campaigns.c.counts).where(campaigns.c.id == campaign))
        if kept is None:
            return
        counts = {name: value for name, value in unpack(kept).items() if name != _KEY}
        values: dict[str, Any] = {"counts": pack(counts)}
        if suppressed_position is not None:
            values["suppressed_position"] = suppressed_position
        connection.execute(update(campaigns).where(campaigns.c.id == campaign).values(values))
