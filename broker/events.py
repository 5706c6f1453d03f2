"""What happens, told to whoever listens: numbered events on a PUB socket.

A message is [topic, msgpack {v, start, seq, time, topic, event, campaign, data}]. Nobody's work depends on one being
received; the state can always be asked for.

Invariants
- A topic ends with a dot, so that `campaign.7.` is no prefix of `campaign.70.`.
- `seq` counts from 1 per topic, without gaps, from one start of the engine (`start`) to its end.
- Each second every topic says its last number once more (event `last`): a lost last event is noticed too.
- Publishing never waits: PUB drops for a subscriber that does not keep up, which then sees a gap.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

import zmq
import zmq.asyncio

from broker.contract import codec
from broker.contract.messages import TOPICS
from broker.contract.paths import StateDir
from broker.contract.sockets import ipc
from broker.contract.timefmt import rfc3339

__all__ = ["LAST", "REPEAT_S", "EventBus", "topic_of"]

LAST: Final = "last"
"""The event that only repeats the last number of its topic."""

REPEAT_S: Final = 1.0

TOPICS_REPEATED: Final = 256  # the latest ones: 2 ms of each second, however many campaigns there have ever been
TOPICS_KEPT: Final = 10_000  # numbers in memory; a topic silent for so long that it fell out begins again at 1
QUEUE_EVENTS: Final = 10_000  # per subscriber, before events are dropped for it


def topic_of(topic: str, campaign: int | None) -> str:
    """The whole topic: `campaign` of campaign 7 is `campaign.7.`, `engine` is `engine.`."""
    words = topic.rstrip(".").split(".")
    assert words[0] in TOPICS, f"not a topic: {topic}"
    if campaign is not None and len(words) == 1 and words[0] in ("campaign", "recipient"):
        words.append(str(campaign))
    return ".".join(words) + "."


class EventBus:
    """The engine's only PUB socket. Made under `broker.lock`: a second bind would steal the path."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        state: StateDir,
        start_id: str,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._path = state.events
        self._start_id = start_id
        self._now_s = now_s
        self._numbers: OrderedDict[str, int] = OrderedDict()  # by topic, the latest used last
        # A plain socket on the loop's context: PUB never blocks, so there is nothing to await.
        self._socket: zmq.Socket[bytes] = zmq.Context.shadow(context.underlying).socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, QUEUE_EVENTS)
        self._repeating: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Bind and begin to repeat last numbers. Must be called on the loop."""
        self._socket.bind(ipc(self._path))
        self._path.chmod(0o660)
        self._repeating = asyncio.get_running_loop().create_task(self._repeat(), name="events repeat")

    def close(self) -> None:
        """Stop; what subscribers have not fetched is lost."""
        if self._repeating is not None:
            self._repeating.cancel()
        self._socket.close(0)

    @property
    def start_id(self) -> str:
        """The start of the engine that the numbers belong to."""
        return self._start_id

    def publish(
        self, topic: str, event: str, campaign: int | None = None, data: Mapping[str, Any] | None = None
    ) -> None:
        """Tell what happened. `data` must be plain values; `campaign` is the id it concerns, if any."""
        whole = topic_of(topic, campaign)
        number = self._numbers.pop(whole, 0) + 1
        self._numbers[whole] = number
        if len(self._numbers) > TOPICS_KEPT:
            self._numbers.popitem(last=False)
        self._send(whole, number, event, campaign, dict(data or {}))

    def numbers(self) -> dict[str, int]:
        """The last number of each topic. Taken before the state is read, so that no event falls between the two."""
        return dict(self._numbers)

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(REPEAT_S)
            for topic, number in list(self._numbers.items())[-TOPICS_REPEATED:]:
                self._send(topic, number, LAST, None, {})

    def _send(self, topic: str, number: int, event: str, campaign: int | None, data: dict[str, Any]) -> None:
        message = {
            "v": codec.VERSION,
            "start": self._start_id,
            "seq": number,
            "time": rfc3339(self._now_s()),
            "topic": topic,
            "event": event,
            "campaign": campaign,
            "data": data,
        }
        self._socket.send_multipart([topic.encode(), codec.pack(message)], zmq.NOBLOCK)
