"""Long work, kept so that neither a loader nor a broker that dies loses it: what was asked, and what came of it.

Progress is not here; it lives in the broker's memory, since work that is interrupted begins again.

Invariants
- A job that has ended (done, failed) never changes again.
- Two requests under one idempotency key are one job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, delete, insert, select, update

from broker.contract.codec import pack, unpack
from broker.contract.errors import EcmError
from broker.store.schema import jobs
from broker.store.store import Store

__all__ = ["ENDED", "JOBS_KEPT", "JobRow", "create", "fail", "finish", "get", "start", "unfinished"]

ENDED: Final = ("done", "failed")

JOBS_KEPT: Final = 1_000
"""Jobs that have ended are kept this long, counted in newer jobs; a snapshot's holds its templates."""


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job. Times in engine seconds. state: queued, running, done, failed."""

    id: int
    kind: str
    state: str
    args: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    """`EcmError.to_map()`."""
    created: float
    finished: float | None


def create(store: Store, kind: str, args: Mapping[str, Any], now_s: float, key: str | None = None) -> JobRow:
    """Keep a new job, queued; or answer the one that this idempotency key stands for already.

    Raises EcmError `bad_request` if the key stands for other work.
    """
    with store.begin() as connection:
        if key is not None:
            known = connection.execute(select(jobs).where(jobs.c.key == key)).one_or_none()
            if known is not None:
                return _same(_row(known), kind, args, key)
        values = {"kind": kind, "state": "queued", "args": pack(dict(args)), "created": now_s, "key": key}
        row = connection.execute(insert(jobs).values(values).returning(jobs)).one()
        connection.execute(delete(jobs).where(jobs.c.id <= row.id - JOBS_KEPT, jobs.c.state.in_(ENDED)))
        return _row(row)


def start(store: Store, job: int) -> None:
    """A worker has it; one that has ended stays as it is."""
    _change(store, job, {"state": "running"})


def finish(store: Store, job: int, result: Mapping[str, Any], now_s: float) -> None:
    """It is done."""
    _change(store, job, {"state": "done", "result": pack(dict(result)), "finished": now_s})


def fail(store: Store, job: int, error: Mapping[str, Any], now_s: float) -> None:
    """It came to nothing. `error`: EcmError.to_map()."""
    _change(store, job, {"state": "failed", "error": pack(dict(error)), "finished": now_s})


def get(store: Store, job: int) -> JobRow:
    """The job of that id. Raises EcmError `unknown_job`."""
    with store.begin() as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == job)).one_or_none()
    if row is None:
        raise EcmError("unknown_job", f"no job has this id: {job}", hint=f"the last {JOBS_KEPT} jobs are kept")
    return _row(row)


def unfinished(store: Store) -> list[JobRow]:
    """What a start offers again, oldest first."""
    with store.begin() as connection:
        rows = connection.execute(select(jobs).where(jobs.c.state.not_in(ENDED)).order_by(jobs.c.id)).all()
    return [_row(row) for row in rows]


def _change(store: Store, job: int, values: Mapping[str, Any]) -> None:
    with store.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job, jobs.c.state.not_in(ENDED)).values(values))


def _same(row: JobRow, kind: str, args: Mapping[str, Any], key: str) -> JobRow:
    if row.kind != kind or pack(row.args) != pack(dict(args)):
        raise EcmError("bad_request", f"this key was used for other work, job {row.id}: `{key}`", field="key")
    return row


def _row(row: Row[Any]) -> JobRow:
    return JobRow(
        id=row.id,
        kind=row.kind,
        state=row.state,
        args=unpack(row.args),
        result=None if row.result is None else unpack(row.result),
        error=None if row.error is None else unpack(row.error),
        created=row.created,
        finished=row.finished,
    )
