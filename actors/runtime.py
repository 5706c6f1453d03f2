"""What every actor shares: birth, heartbeat, messages, signals and end of one process.

An actor is an object with four steps (`Actor`); this module drives it on one uvloop.  It knows nothing of
leases, lists or mail, and it never decides to end: the broker (a message, SIGTERM) or the broker's death does.

- The shared lock on `actors.lock` is held for the life of the process, so that a starting broker can tell when
  the last actor is gone.  Who cannot have it exits with BOOT_FAILED.
- The heartbeat comes from the loop itself, never from a thread: a loop that hangs stops beating.
- SIGABRT prints every thread's stack and then ends the process: the broker sends it before SIGKILL, so that
  a hung actor says where it hangs.
- An exception nobody named ends the process with CRASHED: what it held is recovered from the ledgers, which is
  a path that is always kept working; limping on is not.
- Messages carry `v` and `start`; foreign ones are dropped.  Any may be lost, late or repeated without harm.
"""

from __future__ import annotations

import asyncio
import faulthandler
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import uvloop
import zmq
from setproctitle import setproctitle

from broker.contract import codec
from broker.contract.boot import BOOT_FAILED, CRASHED, DRAINED, Boot, process_starttime
from broker.contract.errors import EcmError
from broker.contract.log import Log, open_log
from broker.contract.paths import StateDir
from broker.contract.sockets import ipc
from shm.arena import Arena
from shm.live.clock import EngineClock
from shm.live.faults import FaultTable
from shm.live.heartbeat import Heartbeats

__all__ = ["BEAT_S", "Actor", "Context", "run"]

BEAT_S = 0.1  # heartbeat and step
LINGER_MS = 500  # how long the last words may take to reach the broker
STARTING, READY, DRAINING, ENDED = 1, 2, 3, 4  # the heartbeat's states

Message = dict[str, Any]


class Actor(Protocol):
    """What an actor must offer; every method runs on the loop."""

    async def start(self, ctx: Context) -> None:
        """Get ready; return when messages may come.  Raising here ends the process with BOOT_FAILED."""

    def step(self) -> None:
        """The duty cycle, every 100 ms from `start` to the end of `drain`.  Must not block."""

    def on_message(self, message: Message) -> None:
        """One message of the broker that the runtime does not answer itself.  Must not block."""

    async def drain(self, now: bool) -> None:
        """Finish what is in flight (`now`: drop it) and return within a bounded time.

        May be called with `now` while an unhurried drain is under way: both then end soon.
        """


@dataclass(slots=True)
class Context:
    """What an actor is given to work with.

    boot      its birth certificate                      arena    shared memory of this start
    state     the state directory's paths                clock    engine time
    send      a map to the broker; never blocks, may be lost
    log       structured log (past tense, one per thing an operator would act on)
    fault     note a distinct error in the arena, where it survives the process
    """

    boot: Boot
    arena: Arena
    state: StateDir
    clock: EngineClock
    send: Callable[[Message], None]
    log: Log
    fault: Callable[[str], None]


def run(boot: Boot, actor_factory: Callable[[], Actor]) -> None:
    """Be one actor until told to end; returns by SystemExit with one of the codes of `contract/boot.py`."""
    setproctitle(f"email-campaign: {boot.name}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches the whole group; the broker decides
    faulthandler.enable(file=sys.stderr, all_threads=True)  # SIGABRT among others
    log = open_log(boot.name)
    try:
        lock = _hold_actors_lock(StateDir(Path(boot.state_dir)))
    except OSError as error:
        log.error("actor could not start", reason=f"actors.lock: {error.strerror}")  # noqa: TRY400  one line, no stack
        raise SystemExit(BOOT_FAILED) from error
    _pin(boot, log)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(_Life(boot, actor_factory(), log).run())
    os.close(lock)
    raise SystemExit(code)


def _hold_actors_lock(state: StateDir) -> int:
    """A descriptor that holds `actors.lock` shared; close-on-exec, so no child can keep it for us."""
    descriptor = os.open(state.actors_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return descriptor


def _pin(boot: Boot, log: Log) -> None:
    if boot.cpus:
        try:
            os.sched_setaffinity(0, boot.cpus)
        except OSError as error:  # the cpuset shrank since the broker looked: slower, not wrong
            log.warning("actor was not pinned", cpus=boot.cpus, reason=error.strerror)


class _Mailbox:
    """The DEALER socket to the broker, driven by the loop's readiness of its descriptor.

    ZeroMQ's descriptor is edge-triggered: it must be drained to EAGAIN, and once more after each send, or a
    message can lie unseen; `step` polls it besides.
    """

    def __init__(self, boot: Boot, deliver: Callable[[Message], None]) -> None:
        self._boot = boot
        self._deliver = deliver
        self._zmq = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._zmq.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, boot.identity)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.connect(ipc(StateDir(Path(boot.state_dir)).actors_socket(boot.start_id)))

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_reader(self._socket.fileno(), self.poll)
        self.poll()

    def poll(self) -> None:
        """Deliver everything that has arrived."""
        while not self._socket.closed:  # a poll asked for before the end may come after it
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = codec.unpack(frames[-1])
            except EcmError:
                continue  # not ours: whatever it was, memory and files are the truth
            if isinstance(message, dict) and message.get("start") == self._boot.start_id:
                self._deliver(message)

    def send(self, message: Message) -> None:
        """Hand a map to ZeroMQ; dropped if its queue is full (a dead broker reads nothing)."""
        full = {"v": codec.VERSION, "start": self._boot.start_id, "actor": self._boot.row, **message}
        try:
            self._socket.send(codec.pack(full), zmq.NOBLOCK)
        except zmq.Again:
            return
        if self._socket.poll(0):  # the send may have swallowed the readiness
            asyncio.get_running_loop().call_soon(self.poll)

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._zmq.term()  # waits LINGER_MS at most


class _Life:
    """One actor's time on the loop."""

    def __init__(self, boot: Boot, actor: Actor, log: Log) -> None:
        self._boot = boot
        self._actor = actor
        self._log = log
        self._ending: set[asyncio.Task[None]] = set()
        self._ready = False
        self._pending: list[Message] = []
        self._fault: Callable[[str], None] | None = None
        self._end: asyncio.Future[int]

    async def run(self) -> int:
        """From hello to bye; returns the exit code."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._end = loop.create_future()
        loop.set_exception_handler(self._on_unnamed)
        if os.getppid() != self._boot.broker_pid:
            return BOOT_FAILED  # born an orphan: nobody would ever end us
        try:
            arena = Arena.attach(self._boot.arena_name, self._boot.start_id)
        except (OSError, ValueError) as error:
            self._log.error("actor could not start", reason=f"arena: {error}")
            return BOOT_FAILED
        self._beats = Heartbeats(arena)
        self._beats.hello(self._boot.row, os.getpid(), process_starttime(os.getpid()))
        self._state(STARTING)
        self._mailbox = _Mailbox(self._boot, self._on_message)
        self._mailbox.open(loop)
        loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        self._beat()
        code = await self._live(self._context(arena))
        self._state(ENDED)
        self._mailbox.close(loop)
        arena.close()
        return code

    def _context(self, arena: Arena) -> Context:
        clock = EngineClock.attach(arena)
        faults = FaultTable(arena)
        row = self._boot.row

        def fault(text: str) -> None:
            faults.note(row, text, clock.now_ns())

        self._fault = fault
        return Context(
            boot=self._boot,
            arena=arena,
            state=StateDir(Path(self._boot.state_dir)),
            clock=clock,
            send=self._mailbox.send,
            log=self._log,
            fault=fault,
        )

    async def _live(self, ctx: Context) -> int:
        try:
            await self._actor.start(ctx)
        except Exception as error:  # noqa: BLE001  outermost loop: one line, then the end
            ctx.fault(f"start: {error}")
            self._log.error("actor could not start", reason=str(error), exc_info=error)
            return BOOT_FAILED
        if self._end.done():
            return self._end.result()
        self._ready = True
        self._state(READY)
        self._mailbox.send({"type": "ready"})
        for message in self._pending:
            self._dispatch(message)
        self._pending.clear()
        code = await self._end
        if code == DRAINED:
            self._mailbox.send({"type": "bye"})
        return code

    def _state(self, state: int) -> None:
        self._now_state = state
        self._beats.state(self._boot.row, state)

    def _beat(self) -> None:
        """Every 100 ms: say that the loop turns, look whether the broker lives, let the actor step."""
        self._loop.call_later(BEAT_S, self._beat)
        self._beats.beat(self._boot.row, time.monotonic_ns())
        if os.getppid() != self._boot.broker_pid and not self._ending:
            self._log.warning("broker died")
            self._drain(now=False)
        self._mailbox.poll()
        if self._ready and not self._end.done():
            self._actor.step()

    def _on_message(self, message: Message) -> None:
        if self._ready:
            self._dispatch(message)
        else:
            self._pending.append(message)

    def _dispatch(self, message: Message) -> None:
        if message.get("type") == "drain":
            self._drain(now=bool(message.get("now")))
        else:
            self._actor.on_message(message)

    def _on_sigterm(self) -> None:
        """The first asks, the second ends: it gets the default action."""
        self._loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._drain(now=False)

    def _drain(self, *, now: bool) -> None:
        if not self._ready:  # nothing held yet
            self._finish(DRAINED)
            return
        if self._ending and not now:
            return
        self._state(DRAINING)
        task = self._loop.create_task(self._actor.drain(now))
        self._ending.add(task)
        task.add_done_callback(self._on_drained)

    def _on_drained(self, task: asyncio.Task[None]) -> None:
        error = task.exception()
        if error is not None:
            self._on_unnamed(self._loop, {"exception": error})
        self._finish(DRAINED)

    def _finish(self, code: int) -> None:
        if not self._end.done():
            self._end.set_result(code)

    def _on_unnamed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that reached the loop: log it and end.  (asyncio's mere complaints are logged only.)"""
        error = context.get("exception")
        if error is None:
            self._log.warning("event loop complained", reason=context.get("message"))
            return
        self._log.error("actor crashed", reason=repr(error), exc_info=error)
        if self._fault is not None:
            self._fault(f"crashed: {error!r}")
        self._finish(CRASHED)
