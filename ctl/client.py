"""The Python client of the control API: one request, one reply, over ZeroMQ.

    with Client(StateDir("/var/lib/email-campaign-manager")) as client:
        print(client.request("engine.stats"))

May import pyzmq and msgpack only, so that a command which asks one question starts in milliseconds. Requests leave as
plain maps; the broker validates them. A client is used by one thread.
"""

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

from broker.contract import codec
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from broker.contract.sockets import ipc

__all__ = ["LONG_S", "Client", "engine_pid", "idempotency_key", "no_engine"]

ANSWER_S = 30.0  # a broker answers within milliseconds; a machine at its limit may take longer
LONG_S = 86400.0  # for what reads a whole audience, or speaks with relays: the engine answers when it is through
LOOK_MS = 200  # while waiting, this often it is made sure that the engine still lives


def engine_pid(state: StateDir) -> int | None:
    """Pid of the engine that runs on a state directory, None if none does."""
    try:
        pid = int(json.loads(state.started.read_text())["pid"])
        with Path(f"/proc/{pid}/stat").open("rb") as stat:
            dead = stat.read().rpartition(b")")[2].split()[0] == b"Z"
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if dead else pid


def no_engine(state: StateDir) -> EcmError:
    """The error of every command that needs an engine where there is none."""
    return EcmError("no_engine", f"no engine runs on this state directory: {state.root}", hint="`ctl start` starts one")


class Client:
    """A connection to the engine of a state directory.

    Raises EcmError no_engine if none runs there, timed_out if it gives no answer, and whatever it answers.
    """

    def __init__(self, state: StateDir) -> None:
        self.state = state
        if engine_pid(state) is None or not state.control.exists():
            raise no_engine(state)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(ipc(state.control))
        self._last_id = 0

    def request(
        self, op: str, args: dict[str, Any] | None = None, *, key: str | None = None, within_s: float = ANSWER_S
    ) -> dict[str, Any]:
        """Ask for one operation and return its result.

        key       idempotency key: asking again with it answers the first result again
        within_s  how long to wait for the answer
        """
        self._last_id += 1
        request: dict[str, Any] = {"v": codec.VERSION, "id": self._last_id, "op": op, "args": args or {}}
        if key is not None:
            request["key"] = key
        self._socket.send(codec.pack(request))
        return self._answer(op, time.monotonic() + within_s)

    def _answer(self, op: str, deadline: float) -> dict[str, Any]:
        while (left_s := deadline - time.monotonic()) > 0:
            if not self._socket.poll(min(LOOK_MS, max(1, int(left_s * 1000))), zmq.POLLIN):
                if engine_pid(self.state) is None:
                    raise no_engine(self.state)
                continue
            reply = codec.unpack(self._socket.recv_multipart()[-1])
            if reply.get("id") != self._last_id:
                continue  # the late answer to a request that was given up
            if reply.get("ok"):
                result: dict[str, Any] = reply["result"]
                return result
            raise EcmError.from_map(reply["error"])
        raise EcmError("timed_out", f"the engine (pid {engine_pid(self.state)}) gave no answer to `{op}`")

    def close(self) -> None:
        """Give the connection back."""
        self._socket.close(0)
        self._context.term()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def idempotency_key() -> str:
    """A key for one changing request and its repetitions."""
    return os.urandom(12).hex()
