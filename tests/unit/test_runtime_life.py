"""One actor's life under the real runtime (actors/runtime.py), each in a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from broker.contract import codec
from broker.contract.boot import BOOT_FAILED, CRASHED, DRAINED, Boot, process_starttime
from broker.contract.paths import StateDir
from broker.contract.sockets import ipc
from shm.arena import Arena, Shape
from shm.live.clock import EngineClock
from shm.live.faults import FaultTable
from shm.live.heartbeat import ActorState, Heartbeats, Kind, Row

ROOT = Path(__file__).resolve().parents[2]
ROW = 1
PATIENCE_S = 20.0


class Stage:
    """An arena, a socket and one actor process."""

    def __init__(self, directory: Path) -> None:
        self.state = StateDir(directory)
        self.state.run.mkdir(parents=True)
        self.start_id = secrets.token_hex(6)
        self.arena_name = f"/ecm-{self.start_id}"
        self.arena = Arena.create(self.arena_name, Shape(actors=2, slots=1, relays=1), self.start_id, "boot")
        EngineClock.create(self.arena, time.time_ns(), time.monotonic_ns())
        self.faults = FaultTable(self.arena)
        self._beats = Heartbeats(self.arena)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.bind(ipc(self.state.actors_socket(self.start_id)))
        self.processes: list[subprocess.Popen[str]] = []

    def command(self, habit: str, **changes: Any) -> list[str]:
        """The command of an actor whose parent is its broker."""
        boot = Boot(
            kind="sender",
            index=3,
            row=ROW,
            generation=1,
            state_dir=str(self.state.root),
            start_id=self.start_id,
            instance="00" * 16,
            arena_name=self.arena_name,
            broker_pid=0,
            broker_starttime=0,
        )
        path = self.state.root / "boot.json"
        path.write_text(json.dumps(asdict(boot) | changes))
        return [sys.executable, "-m", "tests.fixtures.plain_actor", str(path), habit]

    def start(self, habit: str = "plain", **changes: Any) -> subprocess.Popen[str]:
        """Start an actor."""
        return self.popen(self.command(habit, **changes))

    def popen(self, command: list[str]) -> subprocess.Popen[str]:
        """Start any process, ended with the test."""
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=()
        )
        self.processes.append(process)
        return process

    def row(self, process: subprocess.Popen[str]) -> Row:
        """What the heartbeat says of this process."""
        self._beats.spawned(ROW, Kind.SENDER, 3, 1, process.pid, time.monotonic_ns())
        row = self._beats.row(ROW)
        assert row is not None
        return row

    def wait_message(self, kind: str) -> dict[str, Any]:
        """The next message of this kind."""
        while self._socket.poll(int(PATIENCE_S * 1000), zmq.POLLIN):
            identity, frame = self._socket.recv_multipart()
            assert identity == b"sender-3.1"
            message: dict[str, Any] = codec.unpack(frame)
            if message["type"] == kind:
                return message
        raise AssertionError(f"no message {kind}")

    def tell(self, **message: Any) -> None:
        """Send the actor a message."""
        frame = codec.pack({"v": 1, "start": self.start_id, **message})
        self._socket.send_multipart([b"sender-3.1", frame])

    def close(self) -> None:
        """Leave nothing behind."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self._socket.close()
        self._context.term()
        self.arena.close()
        Arena.unlink(self.arena_name)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """An arena, a socket and room for actors."""
    stage = Stage(tmp_path / "state")
    yield stage
    stage.close()


def wait(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"not: {what}"
        time.sleep(0.005)


def lines(process: subprocess.Popen[str]) -> list[str]:
    out, _ = process.communicate(timeout=PATIENCE_S)
    return out.splitlines()


def test_a_ready_actor_says_who_it_is_beats_and_holds_the_lock(stage: Stage) -> None:
    """Ready means: title, pid and start time in the arena, a beat that moves, and a share of actors.lock."""
    process = stage.start()
    message = stage.wait_message("ready")
    assert (message["v"], message["start"], message["actor"]) == (1, stage.start_id, ROW)
    row = stage.row(process)
    assert (row.state, row.starttime) == (ActorState.READY, process_starttime(process.pid))
    assert psutil.Process(process.pid).cmdline()[0] == "email-campaign: sender 3"
    wait(lambda: stage.row(process).beat_ns > row.beat_ns, "a later beat")
    with stage.state.actors_lock.open("r+b") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stage.tell(type="drain", now=False)
        assert process.wait(PATIENCE_S) == DRAINED
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_drain_is_passed_on_and_ends_with_bye(stage: Stage) -> None:
    """A drain message calls drain, then comes bye, state ENDED and exit status 0."""
    process = stage.start()
    stage.wait_message("ready")
    stage.tell(type="drain", now=True)
    stage.wait_message("bye")
    assert process.wait(PATIENCE_S) == DRAINED
    assert stage.row(process).state == ActorState.ENDED
    assert lines(process)[-1] == "drain now=True"


def test_a_hurried_drain_overtakes_a_slow_one(stage: Stage) -> None:
    """now=True while an unhurried drain is under way ends the actor."""
    process = stage.start("slow_drain")
    stage.wait_message("ready")
    stage.tell(type="drain", now=False)
    wait(lambda: stage.row(process).state == ActorState.DRAINING, "draining")
    stage.tell(type="drain", now=True)
    assert process.wait(PATIENCE_S) == DRAINED
    assert [line for line in lines(process) if "drain" in line] == ["drain now=False", "drain now=True"]


def test_the_first_sigterm_asks_and_the_second_kills(stage: Stage) -> None:
    """A drain that takes too long can be ended by a second SIGTERM; SIGINT is nobody's word."""
    process = stage.start("slow_drain")
    stage.wait_message("ready")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    wait(lambda: stage.row(process).state == ActorState.DRAINING, "draining")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == -signal.SIGTERM


def test_messages_before_ready_are_kept_and_foreign_ones_dropped(stage: Stage) -> None:
    """What comes during start is delivered after it; another start's messages never are."""
    process = stage.start("late_start")
    wait(lambda: stage.row(process).pid == process.pid and stage.row(process).state == ActorState.STARTING, "hello")
    wait(lambda: not _refused(lambda: stage.tell(type="leases", start="ffffffffffff")), "connected")
    stage.tell(type="leases")
    assert stage.wait_message("answer")["to"] == "leases"
    stage.tell(type="drain", now=False)
    process.wait(PATIENCE_S)
    assert [line for line in lines(process) if line.startswith("message")] == ["message leases"]


def _refused(send: Callable[[], None]) -> bool:
    try:
        send()
    except zmq.ZMQError:
        return True
    return False


def test_an_actor_ends_when_its_broker_dies(stage: Stage) -> None:
    """The parent is gone: drain, then exit, without anybody asking."""
    command = stage.command("plain")
    code = f"import subprocess, time; p = subprocess.Popen({command!r}); print(p.pid, flush=True); time.sleep(60)"
    broker = stage.popen([sys.executable, "-c", code])
    assert broker.stdout is not None
    actor = psutil.Process(int(broker.stdout.readline()))
    stage.wait_message("ready")
    broker.kill()
    stage.wait_message("bye")
    wait(lambda: not actor.is_running() or actor.status() == psutil.STATUS_ZOMBIE, "the actor ended")


def test_an_actor_born_after_its_brokers_death_does_not_start(stage: Stage) -> None:
    """Another parent than the one in the boot record: there is nobody to work for."""
    assert stage.start(broker_pid=os.getppid() or 1).wait(PATIENCE_S) == BOOT_FAILED


def test_an_actor_that_cannot_have_the_lock_does_not_start(stage: Stage) -> None:
    """A starting broker holds actors.lock alone: exit status 3, one line why."""
    with stage.state.actors_lock.open("w+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = stage.start()
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == BOOT_FAILED
    assert err.count("\n") == 1
    assert "actors.lock" in err


def test_an_actor_of_another_start_does_not_start(stage: Stage) -> None:
    """The arena belongs to another start: exit status 3."""
    process = stage.start(start_id="ffffffffffff")
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == BOOT_FAILED
    assert "start id" in err


def test_a_failed_start_leaves_its_reason_in_the_arena(stage: Stage) -> None:
    """An exception in start: exit status 3, the reason in the log and among the faults."""
    process = stage.start("bad_start")
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == BOOT_FAILED
    assert "no sail" in err
    assert [fault.text for fault in stage.faults.read()] == ["start: no sail"]


def test_an_exception_nobody_named_ends_the_process(stage: Stage) -> None:
    """A step that raises: exit status 1 with the stack in the log."""
    process = stage.start("bad_step")
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == CRASHED
    assert "no rudder" in err
    assert "Traceback" in err


def test_a_hung_actor_says_where_it_hangs(stage: Stage) -> None:
    """SIGABRT prints the stack of every thread before it ends the process."""
    process = stage.start()
    stage.wait_message("ready")
    process.send_signal(signal.SIGABRT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGABRT
    assert "most recent call first" in err
    assert "runtime.py" in err
