"""The loader: imports audiences, snapshots them into shards, and checks campaigns before they are launched.

Jobs run in threads, so the loop keeps beating and a check never waits behind a long import; the work is plain
functions (`JOBS`) that know nothing of messages. A job that is interrupted begins again at the broker's word: a
snapshot leaves nothing behind when it fails, and an import's batches may be repeated.

Invariants
- A job is answered once for each time it is asked: done or failed, never both; progress comes before either.
- A job that is asked for again while it runs is not started twice, and one that has ended is answered again.
- When the actor drains, unfinished jobs are stopped without an answer: the broker knows them as unfinished.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from actors.loader.progress import Cancelled, Progress
from actors.runtime import Context, run
from broker.contract.boot import Boot
from broker.contract.errors import EcmError

__all__ = ["JOBS_AT_ONCE", "Loader", "main"]

JOBS_AT_ONCE: Final = 4
ANSWERS_KEPT: Final = 64
GRACE_S: Final = 2.0  # what an unhurried drain gives jobs that are nearly done

WARM_STEPS: Final = 10

# A job imports what it works with when it comes: the engine is ready 0.3 s sooner. A second later, when the others
# have started too, `_warm` does it in a thread, so that the first campaign need not wait for it.

Message = dict[str, Any]
Job = Callable[[Context, int, Message, Progress, Cancelled], Message]


def _snapshot(ctx: Context, _job: int, args: Message, progress: Progress, cancelled: Cancelled) -> Message:
    from actors.loader.snapshot import snapshot

    return snapshot(args, progress, cancelled, state=ctx.state, now_s=ctx.clock.now_s())


def _check(ctx: Context, _job: int, args: Message, progress: Progress, cancelled: Cancelled) -> Message:
    from actors.loader.snapshot import check

    return check(args, progress, cancelled, state=ctx.state, now_s=ctx.clock.now_s())


def _import(ctx: Context, job: int, args: Message, progress: Progress, cancelled: Cancelled) -> Message:
    from actors.loader.ingest import import_list

    return import_list(args, progress, cancelled, state=ctx.state, now_s=ctx.clock.now_s(), job=job)


def _unsubscribe(ctx: Context, _job: int, args: Message, progress: Progress, cancelled: Cancelled) -> Message:
    from actors.loader.ingest import unsubscribe

    return unsubscribe(args, progress, cancelled, state=ctx.state, now_s=ctx.clock.now_s())


def _warm() -> None:
    import actors.loader.snapshot  # noqa: F401 - for what it costs


JOBS: Final[dict[str, Job]] = {
    "snapshot": _snapshot,
    "check": _check,
    "import": _import,
    "unsubscribe": _unsubscribe,
}


@dataclass(slots=True)
class _Running:
    """A job that was asked for and has no answer yet."""

    stop: threading.Event = field(default_factory=threading.Event)


class Loader:
    """The actor. One per engine."""

    def __init__(self) -> None:
        self._ctx: Context
        self._loop: asyncio.AbstractEventLoop
        # Imports wait for one another, as they must (one writer); nothing else waits for them.
        self._imports = ThreadPoolExecutor(1, thread_name_prefix="import")
        self._others = ThreadPoolExecutor(JOBS_AT_ONCE - 1, thread_name_prefix="job")
        self._running: dict[int, _Running] = {}
        self._answers: OrderedDict[int, Message] = OrderedDict()
        self._idle = asyncio.Event()
        self._draining = False
        self._steps = 0

    async def start(self, ctx: Context) -> None:
        """Get ready."""
        self._ctx = ctx
        self._loop = asyncio.get_running_loop()
        self._idle.set()

    def step(self) -> None:
        """Nothing is due by the clock but to get warm."""
        self._steps += 1
        if self._steps == WARM_STEPS and not self._draining:
            self._others.submit(_warm)

    def on_message(self, message: Message) -> None:
        """A job, or word to stop one."""
        job = message.get("job")
        if not isinstance(job, int):
            return
        if message.get("type") == "job.cancel" and job in self._running:
            self._running[job].stop.set()
        elif message.get("type") == "job" and not self._draining and job not in self._running:
            if job in self._answers:
                self._ctx.send(self._answers[job])
                return
            self._begin(job, message)

    async def drain(self, now: bool) -> None:
        """Stop the jobs, after a moment for those that are nearly done unless `now`."""
        self._draining = True
        if not now:
            try:
                await asyncio.wait_for(self._idle.wait(), GRACE_S)
            except TimeoutError:
                self._ctx.log.info("jobs were stopped", jobs=sorted(self._running))
        for running in self._running.values():
            running.stop.set()
        await self._idle.wait()
        self._imports.shutdown()
        self._others.shutdown()

    def _begin(self, job: int, message: Message) -> None:
        work = JOBS.get(str(message.get("kind")))
        if work is None:
            error = EcmError("bad_request", f"a kind of job the loader does not know: {message.get('kind')!r}")
            self._ctx.send({"type": "job.failed", "job": job, "error": error.to_map()})
            return
        self._running[job] = running = _Running()
        self._idle.clear()
        args = message.get("args") or {}
        pool = self._imports if message.get("kind") == "import" else self._others
        pool.submit(self._run, work, job, args, running)

    def _run(self, work: Job, job: int, args: Message, running: _Running) -> None:
        """One job, in a thread of the pool."""

        def progress(data: Message) -> None:
            self._tell({"type": "job.progress", "job": job, "data": data})

        try:
            result = work(self._ctx, job, args, progress, running.stop.is_set)
            answer = {"type": "job.done", "job": job, "result": result}
        except EcmError as error:
            answer = {"type": "job.failed", "job": job, "error": error.to_map()}
        except Exception as error:  # the outermost loop of a thread: told to the broker and the log
            self._ctx.log.error("job crashed", job=job, exc_info=error)  # noqa: TRY400 - our log, not logging's
            internal = EcmError("internal", f"the job crashed: {error!r}", hint="the engine log has the details")
            answer = {"type": "job.failed", "job": job, "error": internal.to_map()}
        self._loop.call_soon_threadsafe(self._end, job, answer)

    def _tell(self, message: Message) -> None:
        self._loop.call_soon_threadsafe(self._ctx.send, message)

    def _end(self, job: int, answer: Message) -> None:
        running = self._running.pop(job)
        if not (self._draining and running.stop.is_set()):
            self._answers[job] = answer
            if len(self._answers) > ANSWERS_KEPT:
                self._answers.popitem(last=False)
            self._ctx.send(answer)
        if not self._running:
            self._idle.set()


def main(boot: Boot) -> None:
    """Be the loader until told to end."""
    run(boot, Loader)
