"""Answers that the rehearsal server holds back: latency, jitter, and the service times of a server with a capacity.

A server with a capacity takes `rate` messages a second in all at `best` connections. Each connection is served one
message after the other, one in best / rate seconds; with n > best connections open they get into each other's way, and
the total falls to rate * best / n. So the best number of connections is `best`, and a client can find it.

Invariants
- Answers leave in the order in which they were given, and none before its time.
- A service time begins when the one before it ends: timers that fire late do not lower the rate.
- Nothing waits but a timer of the loop, at most one a connection.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from actors.sink.magic import Then

__all__ = ["Capacity", "Delays", "Held"]

_TICK_S = 0.0005  # a timer of uvloop fires in whole milliseconds, up to half of one early
_SLACK_S = 0.005  # so late may a timer or a client's next message be without costing the connection service time


@dataclass(frozen=True, slots=True)
class Capacity:
    """rate: messages a second in all; best: connections at which it is reached."""

    rate: float
    best: int

    def service_s(self, connections: int) -> float:
        """Seconds that a message takes on one of so many connections.

        Up to `best` connections each takes best / rate; n > best together do rate * best / n a second, a share of 1 / n
        each.
        """
        crowd = max(1.0, connections / self.best)
        return self.best / self.rate * crowd * crowd


@dataclass(frozen=True, slots=True)
class Delays:
    """Why answers are late.

    latency_s, jitter_s  each group of answers comes so much later, and up to so much more
    capacity             how fast messages are taken; None = at once
    seed                 of the jitter
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    capacity: Capacity | None = None
    seed: int = 0

    def __bool__(self) -> bool:
        """True if anything is held back at all."""
        return bool(self.latency_s or self.jitter_s or self.capacity)


@dataclass(frozen=True, slots=True)
class _Answer:
    replies: bytes
    then: Then
    serves: bool  # it ends a message, and so costs service time
    given_s: float
    due_s: float


class Held:
    """The answers of one connection that wait for their time.

    delays       why they wait
    number       of the session, for its jitter
    connections  how many are open now
    send         takes (replies, what becomes of the connection, seconds they waited) when their time has come
    """

    def __init__(
        self, delays: Delays, number: int, connections: Callable[[], int], send: Callable[[bytes, Then, float], None]
    ) -> None:
        self._delays = delays
        self._connections = connections
        self._send = send
        self._chance = random.Random(f"{delays.seed}:{number}")  # the same at each rehearsal
        self._loop = asyncio.get_running_loop()
        self._answers: deque[_Answer] = deque()
        self._due_s: float | None = None  # of the oldest; None = not yet looked at
        self._free_s = 0.0  # when the message before it is done
        self._timer: asyncio.TimerHandle | None = None

    def add(self, replies: bytes, then: Then, *, serves: bool) -> None:
        """One more answer; with `serves` it is the answer to a message."""
        now_s = self._loop.time()
        delays = self._delays
        due_s = now_s + delays.latency_s
        if delays.jitter_s:
            due_s += self._chance.random() * delays.jitter_s
        self._answers.append(_Answer(replies, then, serves and delays.capacity is not None, now_s, due_s))
        if self._timer is None:
            self._advance()

    def clear(self) -> None:
        """Forget all: the connection is gone."""
        self._answers.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _advance(self) -> None:
        """Send what is due, in one write, and wait for the next."""
        self._timer = None
        now_s = self._loop.time()
        answers = self._answers
        replies: list[bytes] = []
        then, waited_s = Then.GO_ON, 0.0
        while answers and then is Then.GO_ON:
            oldest = answers[0]
            due_s = self._due_s = self._time_of(oldest) if self._due_s is None else self._due_s
            if due_s > now_s + _TICK_S:
                self._timer = self._loop.call_at(due_s, self._advance)
                break
            answers.popleft()
            self._due_s = None
            replies.append(oldest.replies)
            then = oldest.then
            waited_s = max(waited_s, now_s - oldest.given_s)
        if replies:
            self._send(b"".join(replies), then, waited_s)

    def _time_of(self, answer: _Answer) -> float:
        """When the oldest answer is due; a message's service begins now, with the connections that are open now."""
        capacity = self._delays.capacity
        if not answer.serves or capacity is None:
            return answer.due_s
        began_s = max(self._free_s, answer.given_s - _SLACK_S)
        self._free_s = began_s + capacity.service_s(self._connections())
        return max(answer.due_s, self._free_s)
