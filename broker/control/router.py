"""The control socket: parse, find, validate, execute, reply.

A request is one msgpack map {v, id, op, args, key?}; its reply {v, id, ok, result | error}. DEALER and REQ clients
both work, and proxies between: whatever stands before the payload comes back before the reply.

Invariants
- Whatever a client sends, the broker goes on: every way a request can be wrong has its code, frames that are no
  request are logged and dropped, and a fault of ours is `internal` to the client and a stack in the log.
- A request takes no other's turn: each has a task of its own, at most `REQUESTS_MAX` at once.
- Under one idempotency key a changing request is executed once: while it runs others wait for its reply, and
  afterwards that reply is given again. An error of the world (exit 1) is not kept: trying again may help.
- Nothing waits for a client: a reply that cannot be sent at once is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import zmq
import zmq.asyncio
from pydantic import ValidationError

from broker.contract import codec
from broker.contract.errors import EcmError
from broker.contract.log import log
from broker.contract.messages import KEY_CHARACTERS_MAX, OPERATIONS, REQUEST_KEYS, Operation
from broker.contract.problems import Table, explain, nearest
from broker.contract.sockets import ipc
from broker.control import audience, campaign, instance, job, relay, suppress
from broker.control.seam import Engine, Handler
from broker.store import requests

__all__ = ["HANDLERS", "REQUESTS_MAX", "Router"]

HANDLERS: Final[Mapping[str, Handler]] = MappingProxyType(
    {
        **audience.HANDLERS,
        **campaign.HANDLERS,
        **instance.HANDLERS,
        **job.HANDLERS,
        **relay.HANDLERS,
        **suppress.HANDLERS,
    }
)

REQUESTS_MAX: Final = 1_000
"""Requests under way at once; most wait for a check or an import. More are answered `busy`."""

ID_BYTES_MAX: Final = 256
FRAMES_MAX: Final = 16  # identity, hops of proxies, delimiter, payload


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that is well-formed: its operation exists and its arguments are valid."""

    op: str
    operation: Operation
    args: Table
    raw_args: dict[str, Any]
    key: str | None


class Router:
    """The engine's only ROUTER for clients. Started under `broker.lock`: a second bind would steal the path."""

    def __init__(self, engine: Engine, context: zmq.asyncio.Context) -> None:
        self._engine = engine
        self._path = engine.state.control
        self._socket: zmq.asyncio.Socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 500)  # the answer to `engine.stop` is worth half a second
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # Above the codec's own limit, so that a request that is too large is told so instead of being cut off.
        self._socket.setsockopt(zmq.MAXMSGSIZE, 2 * codec.MESSAGE_BYTES_MAX)
        self._listening: asyncio.Task[None] | None = None
        self._requests: set[asyncio.Task[dict[str, Any]]] = set()
        self._running: dict[str, tuple[bytes, asyncio.Task[dict[str, Any]]]] = {}  # by idempotency key

    async def start(self) -> None:
        """Bind and answer requests from now on."""
        self._socket.bind(ipc(self._path))
        self._path.chmod(0o660)
        self._listening = asyncio.get_running_loop().create_task(self._listen(), name="control")

    def close(self) -> None:
        """Answer no more."""
        for task in (self._listening, *self._requests):
            if task is not None:
                task.cancel()
        self._socket.close()

    async def _listen(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            if not 2 <= len(frames) <= FRAMES_MAX or (len(frames) > 2 and frames[-2] != b""):
                log.warning("foreign frames were dropped", frames=len(frames), sizes=[len(f) for f in frames[:4]])
                continue
            envelope, payload = frames[:-1], frames[-1]
            crowded = len(self._requests) >= REQUESTS_MAX
            task = asyncio.get_running_loop().create_task(self._outcome(payload, crowded=crowded))
            self._requests.add(task)
            task.add_done_callback(partial(self._answer, envelope))

    def _answer(self, envelope: list[bytes], done: asyncio.Task[dict[str, Any]]) -> None:
        self._requests.discard(done)
        if done.cancelled():
            return  # the router is closing
        fault = done.exception()
        # A fault outside of the handler could not be foreseen, and the id is lost with it.
        self._send(envelope, done.result() if fault is None else {"id": None, **_internal(fault)})

    def _send(self, envelope: list[bytes], reply: dict[str, Any]) -> None:
        try:
            data = codec.pack({"v": codec.VERSION, **reply})
        except EcmError as error:  # the answer is too large, or holds a file name that is not UTF-8
            data = codec.pack({"v": codec.VERSION, "id": reply["id"], "ok": False, "error": error.to_map()})
        # The loop's own socket, although nothing is awaited: a send may swallow the signal that requests have come,
        # and only this one looks for them afterwards.
        sent = asyncio.ensure_future(self._socket.send_multipart([*envelope, data], zmq.NOBLOCK))
        sent.add_done_callback(_dropped)

    async def _outcome(self, payload: bytes, *, crowded: bool) -> dict[str, Any]:
        """The reply to one payload, without `v`."""
        request_id = None
        try:
            message = codec.unpack(payload)
            request_id = _id_of(message)
            request = _parse(message)
            if crowded:
                raise EcmError("busy", f"more than {REQUESTS_MAX} requests are under way", hint="try again later")
            if self._engine.stopping and request.operation.changes and request.op != "engine.stop":
                raise EcmError("stopping", "the engine is stopping", hint="`ctl start` starts it again")
            reply = await self._execute(request)
        except EcmError as error:
            reply = {"ok": False, "error": error.to_map()}
        return {"id": request_id, **reply}

    async def _execute(self, request: _Request) -> dict[str, Any]:
        if request.key is None or not request.operation.changes:
            return await self._run(request)
        digest = requests.digest(request.op, request.raw_args)
        running = self._running.get(request.key)
        if running is None:
            task = asyncio.get_running_loop().create_task(self._run_once(request, request.key, digest))
            running = self._running[request.key] = (digest, task)
            task.add_done_callback(lambda _: self._running.pop(request.key or "", None))
        if running[0] != digest:
            raise EcmError("bad_request", f"this key is in use for another request: `{request.key}`", field="key")
        return await asyncio.shield(running[1])  # a client that gives up does not undo what it began

    async def _run_once(self, request: _Request, key: str, digest: bytes) -> dict[str, Any]:
        kept: dict[str, Any] | None = await self._engine.store_call(requests.kept, key, digest)
        if kept is not None:
            return kept
        reply = await self._run(request)
        if reply["ok"] or reply["error"]["exit"] == 2:
            await self._engine.store_call(requests.keep, key, digest, reply, self._engine.now_s())
        return reply

    async def _run(self, request: _Request) -> dict[str, Any]:
        """Let the handler work in a task of its own, whose exception is a value here."""
        task = asyncio.ensure_future(_awaited(HANDLERS[request.op](self._engine, request.args)))
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            raise
        fault = asyncio.CancelledError() if task.cancelled() else task.exception()
        if fault is None:
            return {"ok": True, "result": task.result()}
        if isinstance(fault, EcmError):
            return {"ok": False, "error": fault.to_map()}
        return _internal(fault, request.op)


def _dropped(sent: asyncio.Future[Any]) -> None:
    if not sent.cancelled() and (error := sent.exception()) is not None:
        log.info("reply was dropped", reason=str(error))  # the client has gone, or does not read


async def _awaited(work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    return await work


def _internal(fault: BaseException, op: str | None = None) -> dict[str, Any]:
    log.error("request failed", op=op, exc_info=fault)
    error = EcmError(
        "internal", f"the engine failed at this request: {type(fault).__name__}", hint="its log has the details"
    )
    return {"ok": False, "error": error.to_map()}


def _id_of(message: Any) -> int | str | bytes | None:
    """The request's id as it comes back; any short number, text or bytes."""
    given = message.get("id") if isinstance(message, dict) else None
    if given is None or (isinstance(given, int) and not isinstance(given, bool)):
        return given
    if isinstance(given, str | bytes) and len(given) <= ID_BYTES_MAX:
        return given
    raise EcmError("bad_request", f"`id` must be a number, or at most {ID_BYTES_MAX} bytes of text", field="id")


def _parse(message: Any) -> _Request:
    """A request whose operation exists and whose arguments are valid. Raises EcmError."""
    if not isinstance(message, dict):
        raise EcmError("bad_request", f"a request is a map, not {type(message).__name__}")
    unknown = [key for key in message if key not in REQUEST_KEYS]
    if unknown:
        match = nearest(str(unknown[0]), REQUEST_KEYS)
        hint = f"did you mean `{match}`?" if match else f"known keys: {', '.join(REQUEST_KEYS)}"
        raise EcmError("unknown_key", f"unknown key of a request: `{unknown[0]}`", field=str(unknown[0]), hint=hint)
    if message.get("v") != codec.VERSION or isinstance(message.get("v"), bool):
        raise EcmError(
            "bad_request",
            f"`v` must be {codec.VERSION}, the version this engine speaks: {message.get('v')!r}",
            field="v",
        )
    op = message.get("op")
    if not isinstance(op, str) or op not in OPERATIONS:
        match = nearest(str(op), OPERATIONS)
        hint = f"did you mean `{match}`?" if match else "docs/protocol.md lists them"
        raise EcmError("unknown_operation", f"unknown operation: `{op}`", field="op", hint=hint)
    args = {} if message.get("args") is None else message["args"]
    if not isinstance(args, dict) or not all(isinstance(name, str) for name in args):
        raise EcmError("bad_request", "`args` must be a map with names as keys", field="args")
    key = message.get("key")
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= KEY_CHARACTERS_MAX):
        raise EcmError("bad_request", f"`key` must be text of 1 to {KEY_CHARACTERS_MAX} characters", field="key")
    return _Request(op, OPERATIONS[op], _validated(OPERATIONS[op].args, args), args, key)


def _validated(model: type[Table], args: dict[str, Any]) -> Table:
    try:
        return model.model_validate(args)
    except ValidationError as error:
        problems = explain(error, model)
    # A key that is misspelt is missing too; the misspelling is what one wants to hear of.
    problem = next((each for each in problems if each.code == "unknown_key"), problems[0])
    field = ".".join(str(part) for part in problem.path) or None
    raise EcmError(problem.code, problem.message, field=field, hint=problem.hint)
