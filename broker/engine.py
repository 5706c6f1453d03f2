"""The broker put together: what it holds, its rounds, its start and its stop.

The one process that decides. It never touches a message, and no SQL, fsync or scan of a file runs on its loop: the
store has a thread, ledgers have another.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from typing import Any

import zmq.asyncio

from broker.actors_socket import ActorsSocket
from broker.arena_tables import Tables
from broker.births import boot_of
from broker.breaker import Tally
from broker.campaigns import Campaigns
from broker.contract.errors import EcmError, plainly
from broker.contract.log import log
from broker.contract.machine import Machine
from broker.contract.paths import StateDir
from broker.contract.settings import Settings
from broker.control.router import Router
from broker.custody import Custody
from broker.deaths import last_words
from broker.events import EventBus
from broker.jobs import Jobs
from broker.leases import RETURN, Leases
from broker.pacing import Pacing
from broker.recovery import Recovery
from broker.relay_shares import connections_max
from broker.relays import Relays
from broker.reload import Reload
from broker.rounds import Rounds
from broker.running import Lease, Phase, Running, ShardState
from broker.stats import stats_map, status_map
from broker.store import campaigns as store_campaigns
from broker.store import relays as store_relays
from broker.store.store import Store
from broker.supervisor import Slot, Supervisor
from broker.suppression import Suppression
from shm.files.durable import FileFault
from shm.files.ledger import Counts, Ledger
from shm.live.heartbeat import ActorState

__all__ = ["Engine"]

DRAIN_S = 30.0  # how long a stop waits for what is in flight
FAULT_S = 5.0  # how long a campaign waits after its last fault of a disk
NOW_S = 3.0  # the same for `ctl stop --now`
TELL_AGAIN_S = 0.1  # messages may be lost; what an actor's heartbeat says may not


class Engine:
    """One start of one instance."""

    version = "0.1.0"

    def __init__(
        self, state: StateDir, settings: Settings, machine: Machine, tables: Tables, instance: str, start_id: str
    ) -> None:
        self.state, self.settings, self.machine, self.instance, self.start_id = (
            state, settings, machine, instance, start_id,
        )  # fmt: skip
        self.pid = os.getpid()
        self.tables = tables
        self.clock = tables.clock
        self.started_s = self.clock.now_ns() / 1e9
        self.started_mono = time.monotonic()
        self.sample: dict[str, Any] = {}
        self.stopping = False
        self._stop_now = False
        self._stop_by = 0.0  # monotonic: who has not ended by then is killed
        self._failure: EcmError | None = None
        self._ended = asyncio.Event()
        self._wake = asyncio.Event()
        self._files = ThreadPoolExecutor(1, "files")
        self._store_thread = ThreadPoolExecutor(1, "store")
        self._tasks: set[asyncio.Task[Any]] = set()
        self.sender_count = sum(slot.kind == "sender" for slot in tables.slots)
        rows = [slot.row for slot in tables.slots if slot.kind == "sender"]
        self.relays = Relays(
            settings, tables.relays, tables.faults, rows, now=time.monotonic, seen=self.seen,
            connections_max=connections_max(machine.fds_soft), room=tables.arena.shape.relays,
        )  # fmt: skip
        self.supervisor = Supervisor(
            tables.slots, tables.heartbeats, partial(boot_of, self), self._on_death, self._on_actor
        )
        self.pacing = Pacing(
            state, instance, machine.boot_id or "", settings, tables.grants, self.clock, self.work, self.relays.tokens
        )
        self._custody = Custody(state, instance, machine.boot_id or "")
        self.leases = Leases(
            tables.leases, tables.counters, self._custody, self.work, self.pacing,
            self._wake_actor, self.now_s, self._on_return, self.on_fault, tables.slots_per_actor,
        )  # fmt: skip
        self.campaigns = Campaigns(self)
        self.reload = Reload(self)
        self._rounds = Rounds(self)
        self.recovery = Recovery(self._custody, machine.boot_id or "", self.now_s())

    # start and stop

    def spawn(self) -> None:
        """Open the actors' socket and start them: their imports run while the store is opened."""
        self._context = zmq.asyncio.Context()
        self.actors = ActorsSocket(self._context, self.state, self.start_id, self._on_message)
        self.supervisor.start()

    async def start(self) -> None:
        """Open the store, take up unfinished campaigns, answer requests; returns when every actor is ready."""
        loop = asyncio.get_running_loop()
        self.store: Store = await loop.run_in_executor(self._store_thread, Store.open, self.state.store_db)
        self.events = EventBus(self._context, self.state, self.start_id, self._wall_s)
        self.events.start()
        self.jobs = Jobs(self.store_call, self.events, self._send_loader, self._wall_s)
        self.suppression = Suppression(self, self.tables.suppressed)
        for coroutine in (self.actors.listen(), *self._rounds.all()):
            self.task(coroutine)
        await self.pacing.start()
        self.relays.take_up(await self.store_call(store_relays.known), self._wall_s())
        await self._take_up()
        self.router = Router(self, self._context)
        await self.router.start()
        while not self.supervisor.ready() and not self._ended.is_set():
            await asyncio.sleep(0.005)
        await self.jobs.resume()
        if self._failure is not None:
            raise self._failure

    async def _take_up(self) -> None:
        unfinished = await self.store_call(store_campaigns.unfinished)
        await self.suppression.rebuild(await self.store_call(store_campaigns.oldest_position))
        await self.campaigns.preparing.resume(unfinished)

    async def run(self) -> None:
        """Work until stopped. Raises the EcmError that stopped the service, if one did."""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def request_stop(self, *, now: bool) -> None:
        """Begin to stop (a second request may turn a drain into `now`). Safe to call from a signal handler."""
        self._stop_now = self._stop_now or now
        stop_by = time.monotonic() + (NOW_S if now else DRAIN_S)
        self._stop_by = min(self._stop_by, stop_by) if self.stopping else stop_by
        if not self.stopping:
            self.stopping = True
            self.supervisor.stopping = True
            log.info("engine stopping", now=now)
            self.task(self._stop())
        elif now:
            self.actors.tell(self._alive_names(), {"type": "drain", "now": True})

    def request_reload(self) -> None:
        """Read the settings again; what is wrong with them stands in the log. Safe to call from a signal handler."""
        self.task(self.reload.signalled())

    async def _stop(self) -> None:
        for lease in self.leases.open.values():
            self.leases.order(lease, RETURN)
        told, killed = time.monotonic(), False
        self.actors.tell(self._alive_names(), {"type": "drain", "now": self._stop_now})
        while self.supervisor.alive():
            if time.monotonic() - told > TELL_AGAIN_S:  # one that was still starting has not heard it
                told = time.monotonic()
                self.actors.tell(self._deaf_names(), {"type": "drain", "now": self._stop_now})
            if time.monotonic() > self._stop_by:
                if not killed:
                    names = [slot.name for slot in self.supervisor.alive()]
                    log.error("actors did not end in time and were killed", names=names)
                killed = True
                self.supervisor.kill_all()
            await asyncio.sleep(0.01)
        settled_by = time.monotonic() + NOW_S  # what a failing disk does not take by then the next start recovers
        while self.leases.open and time.monotonic() < settled_by:
            await asyncio.sleep(0.01)
        self._ended.set()

    async def close(self) -> None:
        """Leave nothing behind: sockets, threads, shared memory. Campaigns stay as the ledgers say."""
        self.supervisor.kill_all()
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self.campaigns.preparing.close()
        for name in ("router", "jobs", "events", "actors"):
            part = getattr(self, name, None)
            if part is not None:
                part.close()
        self._files.shutdown()  # first: the thread may be at a ledger
        for lease in self.leases.open.values():
            lease.ledger.close()
        if hasattr(self, "store"):
            self._store_thread.submit(self.store.close)
        self._store_thread.shutdown()
        self._context.destroy(0)
        self.pacing.close()
        self.keep_clock()

    def fail(self, error: EcmError) -> None:
        """Stop the service loudly."""
        log.error("engine failed", code=error.code, reason=error.message)
        self._failure = error
        self.supervisor.stopping = True
        self.stopping = True
        self.supervisor.kill_all()
        self._ended.set()

    # threads and tasks

    def task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run it beside everything else; if it fails, the engine does."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if isinstance(error, EcmError):
            self.fail(error)
        else:
            log.error("broker task failed", exc_info=error)
            self.fail(EcmError("internal", f"the broker failed: {type(error).__name__}: {error}"))

    def work(self, function: Callable[[], Any]) -> Awaitable[Any]:
        """Run a function in the files thread, where ledgers are opened, recovered and counted."""
        return asyncio.get_running_loop().run_in_executor(self._files, function)

    def store_call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Run `function(store, ...)` in the store thread."""
        return asyncio.get_running_loop().run_in_executor(
            self._store_thread, lambda: function(self.store, *args, **kwargs)
        )

    async def work_on_idle(self, campaign: Running, shards: list[ShardState], change: Callable[[Ledger], Any]) -> None:
        """Change the ledgers of idle shards, the broker being their leaseholder; their counts follow."""
        mine = [shard for shard in shards if shard.phase is Phase.IDLE]
        for shard in mine:
            shard.phase = Phase.BUSY
        campaign.busy += len(mine)
        for shard in mine:
            try:
                counts = await self.work(partial(self._change, campaign.id, shard, change))
                campaign.unsettle(shard)
                campaign.settle(shard, counts)
            except (OSError, FileFault) as error:
                self.on_fault(campaign, plainly(error))
            shard.phase = Phase.IDLE
            campaign.busy -= 1
            campaign.file(shard)

    def _change(self, campaign: int, shard: ShardState, change: Callable[[Ledger], Any]) -> Counts:
        ledger = self._custody.open(campaign, shard.number)
        try:
            change(ledger)
            return ledger.summary() or ledger.count()
        finally:
            ledger.close()

    # actors

    def _alive_names(self) -> list[str]:
        return [f"{s.kind}-{s.index}.{s.generation}" for s in self.supervisor.alive()]

    def _deaf_names(self) -> list[str]:
        """Actors that have not begun to drain."""
        states = {row.row: row.state for row in self.tables.heartbeats.rows()}
        deaf = [s for s in self.supervisor.alive() if states.get(s.row) not in (ActorState.DRAINING, ActorState.ENDED)]
        return [f"{s.kind}-{s.index}.{s.generation}" for s in deaf]

    def _wake_actor(self, row: int) -> None:
        slot = self.tables.slots[row - 1]
        self.actors.tell([f"{slot.kind}-{slot.index}.{slot.generation}"], {"type": "leases"})

    def _send_loader(self, message: dict[str, Any]) -> None:
        self.actors.tell([name for name in self._alive_names() if name.startswith("loader-")], message)

    def _on_message(self, actor: str, message: dict[str, Any]) -> None:
        kind = message.get("type", "")
        if kind == "sample":
            self.sample = message["data"]
        elif kind.startswith("job."):
            self.task(self.jobs.on_message(message))
        elif kind in ("lease.done", "ready"):
            self.wake()
        elif kind == "lease.failed":
            lease = self.leases.open.get(message.get("number", 0))
            if lease is not None:
                self.leases.failed(lease)
                self.on_fault(lease.campaign, str(message.get("reason")))
        elif kind == "relays.taken":
            self.relays.told(message.get("actor", 0), message.get("generation", 0))
        if kind == "ready" and actor.startswith("loader-"):
            self.task(self.jobs.offer_again())

    def _on_actor(self, event: str, slot: Slot, data: dict[str, object]) -> None:
        if hasattr(self, "events"):
            self.events.publish("actor", event, data={"kind": slot.kind, "index": slot.index, **data})

    def _on_death(self, slot: Slot) -> None:
        self.relays.died(slot.row)
        how = last_words(self.tables.faults, slot, self.clock.now_ns())
        for lease in self.leases.holder_died(slot.row, how):
            self.task(self.leases.take_back(lease, dead=True))

    def _on_return(self, lease: Lease) -> None:
        self.wake()
        self.task(self.campaigns.conclude_if_done(lease.campaign))

    def on_fault(self, campaign: Running, fault: str) -> None:
        """A disk failed a campaign: it waits for a moment, says why, and tries again."""
        if campaign.fault != fault:
            log.error("disk failed", campaign=campaign.id, reason=fault)
        campaign.fault, campaign.faulted = fault, time.monotonic() + FAULT_S

    def has_seen(self, lease: Lease) -> bool:
        """Whether a holder obeys the lease's last order by now."""
        return self.seen(lease.row, lease.ordered)

    def seen(self, row: int, since: float) -> bool:
        """Whether the loop of the actor in `row` has gone round since a monotonic time."""
        beat = self.tables.heartbeats.row(row)
        return beat is None or beat.beat_ns / 1e9 > since

    # numbers

    def wake(self) -> None:
        """Something changed: hand out shards now instead of at the next round."""
        self._wake.set()

    async def woken(self, within_s: float) -> None:
        """Wait for `wake`, at most this long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), within_s)
        self._wake.clear()

    def now_s(self) -> int:
        """Engine time in whole seconds: what ledgers are written in."""
        return self.clock.now_ns() // 1_000_000_000

    def _wall_s(self) -> float:
        return self.clock.now_ns() / 1e9

    def totals(self) -> dict[str, int]:
        """Events since the engine started, leases under way included."""
        total = {name: getattr(self.leases.totals, name) for name in self.leases.totals.__slots__}
        for counts in self.leases.live().values():
            for name in total:
                total[name] += getattr(counts, name)
        return total

    def sent_by(self, campaign: Running) -> int:
        """Messages of a campaign accepted since the engine started."""
        return self.tally(campaign).sent

    def tally(self, campaign: Running) -> Tally:
        """Events of a campaign since the engine started, leases under way included."""
        return reduce(Tally.plus, self.leases.counted(campaign.leases.values()), campaign.tally)

    def rates_now(self) -> tuple[float, float]:
        """(sent, attempted) a second over the last five seconds."""
        return self._rounds.rates_now()

    def keep_clock(self) -> None:
        """Keep the engine time, so that it never goes back across starts. A disk that does not take it stops nobody."""
        try:
            descriptor = os.open(self.state.clock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, self.clock.now_ns().to_bytes(8, "little"), 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("engine time not kept", reason=error.strerror)

    async def stats_map(self) -> dict[str, Any]:
        """What `ctl stats` shows."""
        return await stats_map(self)

    def status_map(self) -> dict[str, Any]:
        """What `ctl status` shows."""
        return status_map(self)
