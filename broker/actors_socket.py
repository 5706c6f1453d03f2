"""The broker's socket to its actors: wakes, jobs and drains out; answers and samples in.

Messages are hints: any may be lost, late or repeated without harm. Those of another start are dropped.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import zmq
import zmq.asyncio

from broker.contract import codec
from broker.contract.errors import EcmError
from broker.contract.log import log
from broker.contract.paths import StateDir
from broker.contract.sockets import ipc

__all__ = ["ActorsSocket"]


class ActorsSocket:
    """A ROUTER that knows actors by `kind-index.generation`. `on_message(actor, message)` runs on the loop."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        state: StateDir,
        start_id: str,
        on_message: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._start_id = start_id
        self._on_message = on_message
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        path = state.actors_socket(start_id)
        self._socket.bind(ipc(path))
        path.chmod(0o600)

    def tell(self, actors: Iterable[str], message: dict[str, Any]) -> None:
        """Send a message to each of these actors; one that is not connected (yet, or any more) misses it."""
        frame = codec.pack({"v": codec.VERSION, "start": self._start_id, **message})
        for actor in actors:
            # Through the awaitable face: a send beside it would swallow the sign that messages have come.
            sent = asyncio.ensure_future(self._socket.send_multipart([actor.encode(), frame], zmq.NOBLOCK))
            sent.add_done_callback(_missed)

    async def listen(self) -> None:
        """Deliver what actors say, until cancelled."""
        while True:
            frames = await self._socket.recv_multipart()
            if len(frames) != 2:
                continue
            try:
                message = codec.unpack(frames[1])
            except EcmError:
                log.warning("message dropped", name=frames[0].decode(errors="replace"), reason="not msgpack")
                continue
            if isinstance(message, dict) and message.get("start") == self._start_id:
                self._on_message(frames[0].decode(errors="replace"), message)

    def close(self) -> None:
        """Close the socket; nothing is waited for."""
        self._socket.close(0)


def _missed(sent: asyncio.Future[Any]) -> None:
    """An actor that is not there misses a message: it looks at shared memory anyway."""
    if not sent.cancelled():
        sent.exception()
