"""Answers held back: order, service times that do not depend on timers, and the best number of connections."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.sink.held import Capacity, Delays, Held
from actors.sink.magic import Then


@pytest.mark.parametrize(("connections", "total"), [(1, 25.0), (4, 100.0), (8, 200.0), (16, 100.0), (80, 20.0)])
def test_a_capacity_is_reached_at_the_best_number_of_connections(connections: int, total: float) -> None:
    """200 a second at 8 connections; in proportion below, in inverse proportion above."""
    assert connections / Capacity(200.0, 8).service_s(connections) == pytest.approx(total)


class Clocked:
    """A loop whose time a test moves: calls what is due, late by up to `late_s`, as real timers are."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.now_s = 1000.0
        self._late_s = late_s
        self._chance = random.Random(1)
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when: float, callback: Callable[[], None]) -> Any:
        self._timers.append((when, callback))
        return self

    def cancel(self) -> None:
        self._timers.clear()

    def run(self) -> None:
        """Let time pass until nothing waits any more."""
        while self._timers:
            when, callback = self._timers.pop(0)
            self.now_s = max(self.now_s, when + self._chance.random() * self._late_s)
            callback()


def held(
    delays: Delays, loop: Clocked, monkeypatch: pytest.MonkeyPatch, connections: int = 1
) -> tuple[Held, list[tuple[float, bytes]]]:
    """A queue and what it sent: (when, replies)."""
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    sent: list[tuple[float, bytes]] = []
    queue = Held(delays, 1, lambda: connections, lambda replies, _then, _waited_s: sent.append((loop.now_s, replies)))
    return queue, sent


def test_late_timers_do_not_lower_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that answers each reply with a message gets 250 a second, though each timer is up to 1 ms late."""
    loop = Clocked(late_s=0.001)
    queue, sent = held(Delays(capacity=Capacity(2000.0, 8)), loop, monkeypatch)
    began_s = loop.now_s
    for _ in range(1000):
        queue.add(b"250 Ok\r\n", Then.GO_ON, serves=True)
        loop.run()
    assert len(sent) == 1000
    assert loop.now_s - began_s == pytest.approx(4.0, rel=0.01)


def test_a_window_is_served_one_message_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no message costs nothing, but waits for the message before it."""
    loop = Clocked()
    queue, sent = held(Delays(capacity=Capacity(100.0, 1)), loop, monkeypatch)
    for reply in (b"1", b"2"):
        queue.add(reply, Then.GO_ON, serves=True)
    queue.add(b"noop", Then.GO_ON, serves=False)
    queue.add(b"3", Then.CLOSE, serves=True)
    loop.run()
    served = [(round(when - 1000.0, 3), reply) for when, reply in sent]
    assert served == [
        (0.005, b"1"),
        (0.015, b"2noop"),
        (0.025, b"3"),
    ]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=30), st.integers(0, 1000))
def test_replies_keep_their_order_and_come_no_sooner_than_their_time(adds: list[tuple[int, bool]], seed: int) -> None:
    """Whatever the delays: each once, in order, and latency has passed for each."""
    loop = Clocked(late_s=0.001)
    with pytest.MonkeyPatch.context() as patch:
        queue, sent = held(Delays(0.01, 0.02, Capacity(100.0, 1), seed), loop, patch)
        given_s = {}
        for number, (pause_ms, serves) in enumerate(adds):
            loop.now_s += pause_ms / 1000
            given_s[number] = loop.now_s
            queue.add(b"%d " % number, Then.GO_ON, serves=serves)
        loop.run()
    order = [(int(number), when) for when, replies in sent for number in replies.split()]
    assert [number for number, _ in order] == list(range(len(adds)))
    assert all(when >= given_s[number] + 0.0095 for number, when in order)


def test_jitter_is_the_same_for_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal can be repeated."""

    def times(seed: int) -> list[float]:
        loop = Clocked()
        queue, sent = held(Delays(jitter_s=1.0, seed=seed), loop, monkeypatch)
        for n in range(20):
            loop.now_s = 1000.0 + 2 * n
            queue.add(b"x", Then.GO_ON, serves=False)
            loop.run()
        return [when for when, _ in sent]

    assert times(1) == times(1) != times(2)


def test_a_real_loop_serves_at_the_rate() -> None:
    """uvloop's timers are whole milliseconds; 8 connections at 2 ms each make 4,000 a second all the same."""

    async def serve() -> float:
        left = [2000]
        done = asyncio.get_running_loop().create_future()
        queues: list[Held] = []

        def again(index: int) -> None:
            left[0] -= 1
            if left[0] == 0:
                done.set_result(None)
            elif left[0] > 0:
                queues[index].add(b"250 Ok\r\n", Then.GO_ON, serves=True)

        def served(index: int) -> Callable[[bytes, Then, float], None]:
            return lambda _replies, _then, _waited_s: again(index)

        delays = Delays(capacity=Capacity(4000.0, 8))
        queues.extend(Held(delays, n, lambda: 8, served(n)) for n in range(8))
        began_s = time.monotonic()
        for index in range(8):
            again(index)
        async with asyncio.timeout(30):
            await done
        return time.monotonic() - began_s

    assert uvloop.run(serve()) == pytest.approx(0.5, rel=0.25)
