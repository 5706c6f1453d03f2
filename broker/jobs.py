"""Long work: kept, offered to the loader, followed, and offered again after a death.

Work of the loader (`import`, `snapshot`, `check`) travels as messages, which may be lost: an offer is repeated until
the loader says something about the job, and all offers are repeated when a loader says it is ready. Work of the
broker itself is a coroutine registered with `run_here`.

Invariants
- A job ends once, in the store first; whoever waits for it learns that end.
- After a restart of the broker what somebody may still ask about (`import` and the broker's own) begins again; a
  `snapshot` or `check` of the former broker is failed, since whoever waited for it is gone: a campaign that was being
  prepared asks for a new one.
- Progress is memory only: work that is interrupted begins again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from broker.contract.errors import EcmError
from broker.contract.log import log
from broker.events import EventBus
from broker.store import jobs as store_jobs
from broker.store.jobs import JobRow

__all__ = ["OFFER_AGAIN_S", "Jobs", "Progress", "Work"]

OFFER_AGAIN_S: Final = 2.0
"""How long an offer may go unanswered."""

UNKEPT_MAX: Final = 1000

_TIED = frozenset({"snapshot", "check"})  # kinds that mean nothing once the broker that asked is gone

Progress = Callable[[dict[str, Any]], None]
Work = Callable[[dict[str, Any], Progress], Awaitable[dict[str, Any]]]
"""Work of the broker itself: (args, progress) -> result; raises EcmError."""


@dataclass(slots=True)
class _Open:
    """A job that has not ended."""

    row: JobRow
    ended: asyncio.Future[dict[str, Any]]
    heard: bool = False
    """The loader has said something about it since it was last offered."""
    progress: dict[str, Any] = field(default_factory=dict)
    here: asyncio.Task[None] | None = None
    cancelled: bool = False
    """To be given up. It ends when the loader says so: till then that may be at the files."""
    ending: bool = False
    """Its end is on the way into the store: a second one comes too late."""


class Jobs:
    """All jobs of the instance. Used on the loop only.

    store_call   runs a function of the store in its thread
    send_loader  one message to the loader; may be lost
    """

    def __init__(
        self,
        store_call: Callable[..., Awaitable[Any]],
        events: EventBus,
        send_loader: Callable[[dict[str, Any]], None],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._store_call = store_call
        self._events = events
        self._send_loader = send_loader
        self._now_s = now_s
        self._open: dict[int, _Open] = {}
        self._unkept: dict[int, EcmError] = {}  # ends that the store could not take, for whoever asks before a restart
        self._work: dict[str, Work] = {}
        self._repeating: asyncio.Task[None] | None = None

    def run_here(self, kind: str, work: Work) -> None:
        """Jobs of this kind are done by the broker itself, by `work`."""
        self._work[kind] = work

    async def resume(self) -> None:
        """At a start, when the loader is up: take up what the former broker left."""
        for row in await self._store_call(store_jobs.unfinished):
            if row.id in self._open:
                continue
            if row.kind in _TIED:
                error = EcmError("stopping", "the engine was restarted while it worked at this")
                await self._store_call(store_jobs.fail, row.id, error.to_map(), self._now_s())
            else:
                self._begin(row)
        if self._repeating is None:
            self._repeating = asyncio.get_running_loop().create_task(self._repeat_offers(), name="jobs offers")

    def close(self) -> None:
        """Stop repeating offers and end the broker's own work; the next start takes it up."""
        tasks = [self._repeating, *(job.here for job in self._open.values())]
        for task in tasks:
            if task is not None:
                task.cancel()

    # what is asked

    async def start(self, kind: str, args: dict[str, Any], key: str | None = None) -> int:
        """Begin a job; answers its id at once. Asked again under the same key, it is the same job."""
        row: JobRow = await self._store_call(store_jobs.create, kind, args, self._now_s(), key)
        if row.id not in self._open and row.state not in store_jobs.ENDED:
            self._tell(self._begin(row), "job.started", {})
        return row.id

    async def result(self, job: int) -> dict[str, Any]:
        """Wait for the end of a job: its result, or the EcmError it failed with (or `unknown_job`)."""
        known = self._open.get(job)
        if known is not None:
            return await asyncio.shield(known.ended)
        if job in self._unkept:
            raise self._unkept[job]
        row: JobRow = await self._store_call(store_jobs.get, job)
        if row.error is not None:
            raise EcmError.from_map(row.error)
        return row.result or {}

    async def show(self, job: int) -> dict[str, Any]:
        """{"job", "kind", "state", "progress", "result", "error"}. Raises EcmError unknown_job."""
        row: JobRow = await self._store_call(store_jobs.get, job)
        known = self._open.get(job)
        unkept = self._unkept.get(job)
        if unkept is not None:
            row = replace(row, state="failed", error=unkept.to_map())
        return {
            "job": row.id,
            "kind": row.kind,
            "state": "running" if known is not None and known.heard and row.state == "queued" else row.state,
            "progress": dict(known.progress) if known is not None else {},
            "result": row.result,
            "error": row.error,
        }

    def progress_of(self, kind: str, campaign: int) -> dict[str, Any] | None:
        """How far the open job of that kind for a campaign is; None if there is none, or it has said nothing yet."""
        for known in self._open.values():
            if known.row.kind == kind and known.row.args.get("campaign") == campaign:
                return dict(known.progress) or None
        return None

    def cancel_for(self, campaign: int) -> None:
        """Have the snapshot of a campaign given up. It ends when the loader has let go of the files, or is dead."""
        for known in self._open.values():
            if known.row.kind == "snapshot" and known.row.args.get("campaign") == campaign:
                known.cancelled = True
                self._cancel(known)

    # what the loader says

    async def on_message(self, message: dict[str, Any]) -> None:
        """job.progress, job.done or job.failed of the loader. One about a job that has ended is dropped."""
        job, kind = message.get("job"), message.get("type")
        known = self._open.get(job) if isinstance(job, int) else None
        if known is None:
            return
        known.heard = True
        if kind == "job.progress":
            self._progress(known, message.get("data") or {})
        elif kind == "job.done":
            await self._finish(known.row.id, message.get("result") or {})
        elif kind == "job.failed":
            await self._fail(known.row.id, EcmError.from_map(message.get("error") or {}))

    async def offer_again(self) -> None:
        """A loader is ready, the one before it is dead: offer it all open work, from the beginning."""
        for known in list(self._open.values()):
            if known.cancelled:
                await self._fail(known.row.id, EcmError("campaign_cancelled", "the job was cancelled"))
            else:
                known.heard = False
                self._offer(known)

    # steps

    def _begin(self, row: JobRow) -> _Open:
        ended: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        ended.add_done_callback(_noticed)
        known = self._open[row.id] = _Open(row, ended)
        if row.kind in self._work:
            known.here = asyncio.get_running_loop().create_task(self._run(known), name=f"job {row.id}")
        else:
            self._offer(known)
        return known

    def _offer(self, known: _Open) -> None:
        if known.here is None:
            row = known.row
            self._send_loader({"type": "job", "job": row.id, "kind": row.kind, "args": row.args})

    def _cancel(self, known: _Open) -> None:
        self._offer(known)  # a loader that never heard of it would not answer; one that works at it drops this
        self._send_loader({"type": "job.cancel", "job": known.row.id})

    async def _repeat_offers(self) -> None:
        while True:
            await asyncio.sleep(OFFER_AGAIN_S)
            for known in list(self._open.values()):
                if known.cancelled:
                    self._cancel(known)
                elif not known.heard:
                    self._offer(known)

    async def _run(self, known: _Open) -> None:
        job, work = known.row.id, self._work[known.row.kind]
        known.heard = True
        task: asyncio.Task[dict[str, Any]] = asyncio.get_running_loop().create_task(
            _awaited(work(known.row.args, lambda data: self._progress(known, data)))
        )
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            raise
        fault = asyncio.CancelledError() if task.cancelled() else task.exception()
        if fault is None:
            await self._finish(job, task.result())
        elif isinstance(fault, EcmError):
            await self._fail(job, fault)
        else:
            log.error("job failed", job=job, kind=known.row.kind, exc_info=fault)
            await self._fail(job, EcmError("internal", f"the job failed: {type(fault).__name__}: {fault}"))

    def _progress(self, known: _Open, data: dict[str, Any]) -> None:
        known.progress = data
        self._tell(known, "job.progress", data)

    async def _finish(self, job: int, result: dict[str, Any]) -> None:
        known = self._open.get(job)
        if known is not None and await self._end(known, store_jobs.finish, result):
            known.ended.set_result(result)
            self._tell(known, "job.done", {"result": _brief(result)})

    async def _fail(self, job: int, error: EcmError) -> None:
        known = self._open.get(job)
        if known is not None and await self._end(known, store_jobs.fail, error.to_map()):
            known.ended.set_exception(error)
            self._tell(known, "job.failed", {"error": error.to_map()})

    async def _end(self, known: _Open, change: Callable[..., None], outcome: dict[str, Any]) -> bool:
        """Put a job's end into the store; False if it had ended already, or the store could not take it.

        In the latter case whoever waits is told that, and the next start begins the job anew.
        """
        if known.ending:
            return False
        known.ending = True
        try:
            await self._store_call(change, known.row.id, outcome, self._now_s())
        except EcmError as error:
            log.error("job's end not kept", job=known.row.id, reason=error.message)
            self._unkept[known.row.id] = error
            while len(self._unkept) > UNKEPT_MAX:
                del self._unkept[next(iter(self._unkept))]
            known.ended.set_exception(error)
            return False
        finally:
            del self._open[known.row.id]
        return True

    def _tell(self, known: _Open, event: str, data: dict[str, Any]) -> None:
        self._events.publish(f"job.{known.row.id}", event, data={"job": known.row.id, "kind": known.row.kind, **data})


async def _awaited(work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    return await work


def _noticed(ended: asyncio.Future[dict[str, Any]]) -> None:
    """An error nobody waits for is in the store; asyncio need not warn of it."""
    if not ended.cancelled():
        ended.exception()


def _brief(result: dict[str, Any]) -> dict[str, Any]:
    """A result as events carry it: a snapshot of millions has thousands of shards."""
    return {name: value for name, value in result.items() if name != "shards"}
