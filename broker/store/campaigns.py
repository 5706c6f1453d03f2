"""Campaigns and their shards as the store keeps them: all that a campaign object needs after a restart.

What became of a recipient is never here; ledgers tell it. The store keeps what people wrote (the spec), where the
campaign stands, what its snapshot counted and, once it has ended, its final account.

Invariants
- A name belongs to one campaign, and an id is never used again.
- A campaign's shards are all known to the store, or none is: they arrive together with the state that needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, and_, delete, func, insert, literal, or_, select, update

from broker.contract.codec import pack, unpack
from broker.contract.errors import EcmError
from broker.contract.timefmt import rfc3339
from broker.store import schema
from broker.store.schema import campaigns
from broker.store.store import Store

__all__ = [
    "ENDED",
    "UNFINISHED",
    "CampaignRow",
    "ShardRow",
    "create",
    "finish",
    "get",
    "listing",
    "oldest_position",
    "ready",
    "recent",
    "replace_draft",
    "set_state",
    "shards",
    "unfinished",
]

UNFINISHED: Final = ("preparing", "running", "waiting", "paused")
"""States in which a start has to take a campaign up again."""

ENDED: Final = ("finished", "cancelled")

_BRIEF: Final[Select[*tuple[Any, ...]]] = select(
    *(column for column in campaigns.c if column.name != "spec"), literal(pack({})).label("spec")
)

ID_MAX: Final = (1 << 63) - 1  # SQLite's largest number: a longer row of digits is no campaign's id


@dataclass(frozen=True, slots=True)
class CampaignRow:
    """A campaign. Times in engine seconds, None until they happened."""

    id: int
    name: str
    state: str
    reason: dict[str, Any] | None
    created: float
    launched: float | None
    finished: float | None
    started_ns: int | None
    """First attempt."""
    spec: dict[str, Any]
    """`CampaignSpec.to_map()`, templates included; empty in listings, which would carry megabytes of them."""
    counts: dict[str, Any] | None
    """What the snapshot counted (rows, rejected, rejects_file ...), at the end the whole account; None: not known."""
    suppressed_position: int | None
    """The last suppression change that the snapshot knew."""


@dataclass(frozen=True, slots=True)
class ShardRow:
    """A shard of a campaign: `number` from 1, its recipient-domain group, how many rows."""

    number: int
    group: str
    rows: int


def create(store: Store, name: str, spec: Mapping[str, Any], now_s: float) -> int:
    """A new draft; answers its id. Raises EcmError `campaign_exists` if the name is taken."""
    with store.begin() as connection:
        taken = connection.execute(
            select(campaigns.c.id, campaigns.c.state, campaigns.c.created).where(campaigns.c.name == name)
        ).one_or_none()
        if taken is not None:
            raise EcmError(
                "campaign_exists",
                f"campaign {taken.id}, {taken.state}, created {rfc3339(taken.created)}, has this name: `{name}`",
                field="name",
                hint="choose another name",
            )
        values = {"name": name, "state": "draft", "created": now_s, "spec": pack(dict(spec))}
        return _id(connection.execute(insert(campaigns).values(values)).inserted_primary_key)


def replace_draft(store: Store, campaign: int, spec: Mapping[str, Any], now_s: float) -> None:
    """Give a draft another content, as if it had just been made. Raises EcmError `wrong_state` if it is no draft."""
    with store.begin() as connection:
        row = _one(connection, campaign)
        if row.state != "draft":
            raise EcmError("wrong_state", f"only a draft can be replaced; campaign `{row.name}` is {row.state}")
        values = {"spec": pack(dict(spec)), "created": now_s, "reason": None, "counts": None, "launched": None}
        connection.execute(update(campaigns).where(campaigns.c.id == campaign).values(values))


def get(store: Store, campaign: int | str) -> CampaignRow | None:
    """The campaign of that id or name, or None. Digits are an id: names are never all digits."""
    with store.begin() as connection:
        row = connection.execute(select(campaigns).where(_is(campaign))).one_or_none()
    return None if row is None else _row(row)


def listing(store: Store, limit: int | None = None) -> list[CampaignRow]:
    """The newest campaigns, newest first; all without a limit."""
    with store.begin() as connection:
        rows = connection.execute(_BRIEF.order_by(campaigns.c.id.desc()).limit(limit)).all()
    return [_row(row) for row in rows]


def recent(store: Store, since_s: float) -> list[CampaignRow]:
    """Campaigns that have not ended, or ended at `since_s` or later; newest first."""
    going = or_(campaigns.c.state.not_in(ENDED), campaigns.c.finished >= since_s)
    with store.begin() as connection:
        rows = connection.execute(_BRIEF.where(going).order_by(campaigns.c.id.desc())).all()
    return [_row(row) for row in rows]


def unfinished(store: Store) -> list[CampaignRow]:
    """What a start takes up again, oldest first: also a cancel that was answered and not brought to its end."""
    cancelling = and_(campaigns.c.state == "cancelled", campaigns.c.finished.is_(None))
    with store.begin() as connection:
        rows = connection.execute(
            select(campaigns).where(or_(campaigns.c.state.in_(UNFINISHED), cancelling)).order_by(campaigns.c.id)
        ).all()
    return [_row(row) for row in rows]


def set_state(
    store: Store,
    campaign: int,
    state: str,
    reason: Mapping[str, Any] | None = None,
    **times: float | None,
) -> None:
    """Move a campaign. `times`: any of launched, finished (seconds), started_ns; None erases one.

    Raises EcmError `unknown_campaign`.
    """
    assert times.keys() <= {"launched", "finished", "started_ns"}, f"not a time of a campaign: {sorted(times)}"
    values = {"state": state, "reason": None if reason is None else pack(dict(reason)), **times}
    with store.begin() as connection:
        _one(connection, campaign)
        connection.execute(update(campaigns).where(campaigns.c.id == campaign).values(values))


def ready(store: Store, campaign: int, parts: Iterable[Sequence[Any]], counts: Mapping[str, Any]) -> None:
    """The snapshot's files are on disk: record its shards and counts and let the campaign run.

    parts   (number, group, rows) of each shard, as the loader reports them
    counts  the loader's result; `suppressed_position` in it is where the log of suppressions goes on for it
    A campaign that is no longer preparing (it was cancelled meanwhile) keeps its state.
    """
    table = schema.shards
    rows = [{"campaign": campaign, "number": n, "group": group, "rows": size} for n, group, size in parts]
    values = {
        "counts": pack({name: value for name, value in counts.items() if name != "shards"}),
        "suppressed_position": counts.get("suppressed_position"),
    }
    with store.begin() as connection:
        if _one(connection, campaign).state == "preparing":
            values |= {"state": "running", "reason": None}
        connection.execute(delete(table).where(table.c.campaign == campaign))
        if rows:
            connection.execute(insert(table), rows)
        connection.execute(update(campaigns).where(campaigns.c.id == campaign).values(values))


def shards(store: Store, campaign: int) -> list[ShardRow]:
    """The shards of a campaign, by number."""
    table = schema.shards
    with store.begin() as connection:
        rows = connection.execute(
            select(table.c.number, table.c.group, table.c.rows)
            .where(table.c.campaign == campaign)
            .order_by(table.c.number)
        ).all()
    return [ShardRow(number, group, size) for number, group, size in rows]


def finish(store: Store, campaign: int, state: str, counts: Mapping[str, Any], now_s: float) -> None:
    """The end: `state` is finished or cancelled, `counts` the final account, kept beside what the snapshot counted."""
    assert state in ENDED, state
    with store.begin() as connection:
        row = _row(_one(connection, campaign))
        values = {
            "state": state,
            "reason": None,
            "finished": now_s,
            "counts": pack({**(row.counts or {}), **counts}),
        }
        connection.execute(update(campaigns).where(campaigns.c.id == campaign).values(values))


def oldest_position(store: Store) -> int | None:
    """The suppression change from which on the arena's log is needed: that of the oldest unfinished snapshot.

    None if no snapshot is in use: then nothing before the last change is needed.
    """
    with store.begin() as connection:
        position: int | None = connection.scalar(
            select(func.min(campaigns.c.suppressed_position)).where(campaigns.c.state.in_(UNFINISHED))
        )
    return position


def _is(campaign: int | str) -> Any:
    if isinstance(campaign, str) and campaign.isascii() and campaign.isdigit():
        campaign = int(campaign)
    if isinstance(campaign, str):
        return campaigns.c.name == campaign
    return campaigns.c.id == min(campaign, ID_MAX)


def _one(connection: Connection, campaign: int) -> Row[*tuple[Any, ...]]:
    row = connection.execute(select(campaigns).where(campaigns.c.id == campaign)).one_or_none()
    if row is None:
        raise EcmError("unknown_campaign", f"no campaign has this id: {campaign}")
    return row


def _id(primary_key: Any) -> int:
    return int(primary_key[0])


def _row(row: Row[*tuple[Any, ...]]) -> CampaignRow:
    return CampaignRow(
        id=row.id,
        name=row.name,
        state=row.state,
        reason=None if row.reason is None else unpack(row.reason),
        created=row.created,
        launched=row.launched,
        finished=row.finished,
        started_ns=row.started_ns,
        spec=unpack(row.spec),
        counts=None if row.counts is None else unpack(row.counts),
        suppressed_position=row.suppressed_position,
    )
