"""The monitor as a process: born, heard, and gone."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zmq

from actors.monitor.actor import SAMPLE_NS, Monitor, main
from broker.contract import codec
from broker.contract.boot import DRAINED, Boot, process_starttime
from broker.contract.machine import boot_id
from broker.contract.paths import StateDir
from broker.contract.settings import Settings
from broker.contract.sockets import ipc
from shm.arena import Arena, Shape
from shm.live.clock import EngineClock
from shm.live.heartbeat import Heartbeats, Kind

ROW = 1


@dataclass
class Instance:
    """The broker's side of an instance without a broker: arena, socket, and the certificate of a monitor."""

    boot: Boot
    arena: Arena
    socket: zmq.Socket[bytes]

    def receive(self) -> tuple[bytes, dict[str, Any]]:
        """The next message of an actor, within 20 seconds."""
        assert self.socket.poll(20_000, zmq.POLLIN), "the monitor said nothing"
        identity, *_, data = self.socket.recv_multipart()
        return identity, codec.unpack(data)

    def send(self, identity: bytes, message: dict[str, Any]) -> None:
        self.socket.send_multipart([identity, codec.pack({"v": 1, "start": self.boot.start_id, **message})])


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    """An instance with room for a broker and a monitor."""
    start_id = os.urandom(6).hex()
    state = StateDir(tmp_path)
    state.run.mkdir()
    arena = Arena.create(f"ecm-{start_id}", Shape(actors=2, slots=4, relays=2), start_id, boot_id())
    context = zmq.Context()
    try:
        EngineClock.create(arena, time.time_ns(), time.monotonic_ns())
        socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        socket.bind(ipc(state.actors_socket(start_id)))
        boot = Boot(
            kind="monitor",
            index=0,
            row=ROW,
            generation=1,
            state_dir=str(state.root),
            start_id=start_id,
            instance="0" * 32,
            arena_name=arena.name,
            broker_pid=os.getpid(),
            broker_starttime=process_starttime(os.getpid()),
            settings=Settings().to_public_map(),
        )
        yield Instance(boot, arena, socket)
        socket.close(0)
    finally:
        context.term()
        arena.close()
        Arena.unlink(arena.name)


def test_a_monitor_reports_broker_and_itself_and_leaves_when_told(instance: Instance) -> None:
    """Two samples arrive about a second apart; the second knows rates; a drain message ends the process cleanly."""
    process = multiprocessing.get_context("spawn").Process(target=main, args=(instance.boot,))
    process.start()
    try:
        assert process.pid is not None
        Heartbeats(instance.arena).spawned(ROW, Kind.MONITOR, 0, 1, process.pid, time.monotonic_ns())
        samples: list[dict[str, Any]] = []
        while len(samples) < 3:
            identity, message = instance.receive()
            if message["type"] == "sample":
                samples.append(message["data"])
        first, last = samples[0], samples[-1]
        assert set(last["actors"]) == {os.getpid(), process.pid}
        assert first["actors"][os.getpid()]["cpu"] is None
        assert last["actors"][process.pid]["cpu"] < 1
        assert last["resources"]["share"] == 0.9
        assert last["resources"]["processes"]["used"] == 2
        assert last["resources"]["cpu"]["limit"] > 0
        assert last["machine"]["arena"] >= instance.arena.size
        instance.send(identity, {"type": "drain", "now": False})
        process.join(20)
        assert process.exitcode == DRAINED
    finally:
        process.kill()
        process.join()


def test_watchers_see_each_sample_and_none_is_made_up_for(instance: Instance) -> None:
    """A step before its second does nothing, and a late one gives one sample, which watchers and broker both get."""
    seen: list[dict[str, Any]] = []
    sent: list[dict[str, Any]] = []

    class Here:
        boot, arena, state = instance.boot, instance.arena, StateDir(instance.boot.state_dir)

        @staticmethod
        def send(message: dict[str, Any]) -> None:
            sent.append(message)

    monitor = Monitor([seen.append])
    start = monitor.start(Here)  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        start.send(None)
    now = [time.monotonic_ns()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic_ns", lambda: now[0])
        for passed in (0, SAMPLE_NS // 10, SAMPLE_NS, 5 * SAMPLE_NS, 6):
            now[0] += passed
            monitor.step()
    assert len(seen) == 3
    assert [message["data"] for message in sent] == seen
    assert {message["type"] for message in sent} == {"sample"}
