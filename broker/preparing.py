"""From a draft to a campaign in memory: its checks, its snapshot, and files that are taken up again at a start.

Asks the loader for the files and the relays whether they answer; what the campaign does then is `campaigns`' matter.

Invariants
- A campaign leaves `preparing` for `running` in one transaction with its shards, or goes back to `draft` with its
  reason and without files.
- While anybody is at the files of a snapshot its campaign is no draft, so that no second snapshot begins beside it.
- One campaign whose files cannot be used keeps no other from being taken up.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.contract.campaign import CampaignSpec
from broker.contract.errors import EcmError, plainly
from broker.contract.log import log
from broker.contract.paths import StateDir
from broker.contract.timefmt import rfc3339
from broker.running import ACTIVE, Origin
from broker.store import campaigns as store_campaigns
from shm.files import bundle as bundle_file
from shm.files.durable import FileFault

if TYPE_CHECKING:
    from broker.campaigns import Campaigns
    from broker.engine import Engine

__all__ = ["Preparing", "origin_of"]

START_S = 10.0  # how long a start, or a request, waits for campaigns that are being taken up
AGAIN_S = 5.0  # between tries to take up a campaign whose files a disk does not give


class Preparing:
    """All campaigns that are between the store and memory, a task each."""

    def __init__(self, engine: "Engine", campaigns: "Campaigns") -> None:
        self._engine = engine
        self._campaigns = campaigns
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def prepare(self, number: int, spec: CampaignSpec) -> None:
        """Begin with a campaign that the store calls `preparing`; `checked` waits for the end of it."""
        self._begin(number, self._prepare(number, spec))

    async def resume(self, rows: list[Any]) -> None:
        """At a start: take up what an earlier broker left. Snapshots are begun anew, nobody waits for them."""
        tried = []
        for row in rows:
            if row.state == "preparing":
                self.prepare(row.id, CampaignSpec.from_map(row.spec))
            else:
                tried.append(asyncio.Event())
                self._begin(row.id, self._take_up(row, tried[-1]))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(event.wait() for event in tried)), START_S)

    async def checked(self, number: int) -> None:
        """Wait until a campaign has left `preparing`. Raises the EcmError that sent it back to draft."""
        task = self._tasks.get(number)
        if task is not None:
            await asyncio.shield(task)

    async def taken_up(self, number: int) -> None:
        """Wait for a campaign whose files are ready and that is not in memory yet, so that it can be told something."""
        task = self._tasks.get(number)
        if task is not None and await self._campaigns.state(number) in ACTIVE:
            await asyncio.wait({task}, timeout=START_S)

    def close(self) -> None:
        """Give up everything: the next start begins it anew."""
        for task in self._tasks.values():
            task.cancel()

    def snapshot_args(self, number: int, spec: CampaignSpec, relays: list[tuple[str, int]]) -> dict[str, Any]:
        """What the loader needs to know for a snapshot or a check."""
        return {
            "campaign": number,
            "spec": spec.to_map(),
            "relays": [list(relay) for relay in relays],
            "retry": self._engine.settings.retry.to_map(),
            "sender_count": self._engine.sender_count,
            "instance": self._engine.instance,
        }

    # steps

    def _begin(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"prepare {number}")
        self._tasks[number] = task
        task.add_done_callback(partial(self._done, number))

    def _done(self, number: int, task: asyncio.Task[None]) -> None:
        """An EcmError is told to who waits and stands in the campaign; any other fault is the broker's."""
        if self._tasks.get(number) is task:
            del self._tasks[number]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, EcmError):
            log.error("campaign not prepared", campaign=number, exc_info=error)
            self._engine.fail(EcmError("internal", f"preparing campaign {number} failed: {error!r}"))

    async def _prepare(self, number: int, spec: CampaignSpec) -> None:
        try:
            result = await self._snapshot(number, spec)
            await self._engine.store_call(store_campaigns.ready, number, result["shards"], _facts(result))
        except EcmError as error:
            await self._back_to_draft(number, error)
            raise
        # Also one that was cancelled meanwhile: its people are then counted as cancelled.
        await self._take_up(await self._engine.store_call(store_campaigns.get, number), asyncio.Event())

    async def _snapshot(self, number: int, spec: CampaignSpec) -> dict[str, Any]:
        """Have the files made while the relays are spoken with. When it raises, nobody is at the files any more."""
        relays = self._engine.relays.of(spec)
        job = await self._engine.jobs.start("snapshot", self.snapshot_args(number, spec, relays), None)
        made = asyncio.ensure_future(self._engine.jobs.result(job))
        spoken = asyncio.ensure_future(self._engine.relays.reachable(relays))
        try:
            await asyncio.wait({made, spoken}, return_when=asyncio.FIRST_EXCEPTION)
            if not made.done():
                self._engine.jobs.cancel_for(number)
                await asyncio.wait({made})
                made.exception()  # heard: what the relays said is the reason
            if spoken.done():
                spoken.result()
            return made.result()
        finally:
            made.cancel()
            spoken.cancel()

    async def _back_to_draft(self, number: int, error: EcmError) -> None:
        directory = self._engine.state.campaign(number)
        await self._engine.work(lambda: _remove_shards(directory))  # first: a draft may be launched again at once
        async with self._campaigns.turn:
            if await self._campaigns.state(number) == "preparing":
                reason = {name: value for name, value in error.to_map().items() if name != "exit"}
                await self._campaigns.set_state(number, "draft", reason | {"since": self._now_text()}, launched=None)
        log.warning("campaign not launched", campaign=number, code=error.code, reason=error.message)

    async def _take_up(self, row: Any, tried: asyncio.Event) -> None:
        """Take a campaign into memory; as long as its files cannot be used it says why, and is tried again."""
        while True:
            try:
                await self._campaigns.adopt(row)
                return
            except (OSError, FileFault, EcmError) as error:
                log.error("campaign not taken up", campaign=row.id, reason=plainly(error))
                await self._say_why_not(row, plainly(error))
            finally:
                tried.set()
            await asyncio.sleep(AGAIN_S)

    async def _say_why_not(self, row: Any, fault: str) -> None:
        hint = "free or mend the disk; it is tried again by itself"
        reason = {"code": "disk", "message": fault, "hint": hint, "since": self._now_text()}
        with contextlib.suppress(EcmError):  # then the log has to do
            if row.state in ACTIVE:
                await self._engine.store_call(store_campaigns.set_state, row.id, row.state, reason)

    def _now_text(self) -> str | None:
        return rfc3339(self._engine.clock.now_ns() / 1e9)


def origin_of(state: StateDir, instance: str, number: int, spec: CampaignSpec) -> Origin:
    """What a campaign was launched with. Reads its bundle: for the files thread. Raises OSError, FileFault."""
    bundle = bundle_file.read(state.bundle(number), instance=instance, campaign=number)
    return Origin(spec.relay, spec.from_address, tuple(name for name, _ in bundle.relays))


def _facts(result: dict[str, Any]) -> dict[str, Any]:
    counted = ("rows", "rejected", "duplicates", "audience", "suppressed")
    names = (*counted, "rejects_file", "suppressed_position", "warnings")
    return {name: result.get(name) for name in names}


def _remove_shards(directory: Path) -> None:
    """Remove what a failed snapshot left, but keep the side file that says which rows were wrong."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.name == "rejects.csv":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
