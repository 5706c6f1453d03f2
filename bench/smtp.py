"""What SMTP costs: a message through Transactions, and messages a second into the sink. Run: `python bench/smtp.py`.

Part 1, one process, no socket: `submit` of one message and `receive` of its four replies, microseconds of CPU, in
each mode; windows of BDAT are answered at once.
Part 2, two processes over loopback: pipelined sessions of our own Transactions into `actors.sink.actor`. The sink has
a core of its own where there are two; its CPU time per message says what one core could take.

`--messages N` bounds part 2; it takes a few seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import psutil
import uvloop

from actors.smtp.transaction import Mode, Transactions

ROOT = Path(__file__).resolve().parents[1]
MAIL, RCPT = b"news@example.com", b"anna.anderson@example.org"
PARAMS = b"SIZE=4096"
GROUP = b"250 2.0.0 Ok: queued as 12AB34\r\n250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"
CHUNK = b"250 2.0.0 Ok\r\n250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n250 2.0.0 Ok: 4096 bytes queued as 12AB34\r\n"


def body_of(size: int) -> bytes:
    """A message of about `size` bytes in lines of 76."""
    head = b"From: news@example.com\r\nMessage-ID: <%d@example.com>\r\nSubject: bench\r\n\r\n"
    return head + (b"=3D words, plainly said. " * 3 + b"\r\n") * (size // 77)


def lockstep(body: bytes, rounds: int) -> float:
    """Microseconds per message, a reply at a time."""
    client = Transactions(Mode.LOCKSTEP)
    replies = (b"250 2.1.0 Ok\r\n", b"250 2.1.5 Ok\r\n", b"354 End data\r\n", b"250 2.0.0 Ok: queued as 12AB34\r\n")
    began_ns = time.process_time_ns()
    for number in range(rounds):
        client.submit(number, MAIL, RCPT, body, PARAMS)
        for reply in replies:
            client.receive(reply)
    return (time.process_time_ns() - began_ns) / rounds / 1000


def pipelined(body: bytes, rounds: int) -> float:
    """Microseconds per message, a group at a time."""
    client = Transactions(Mode.PIPELINING)
    client.submit(0, MAIL, RCPT, body, PARAMS)
    client.receive(GROUP[GROUP.index(b"\n") + 1 :])
    began_ns = time.process_time_ns()
    for number in range(1, rounds + 1):
        client.submit(number, MAIL, RCPT, body, PARAMS)
        client.receive(GROUP)
    return (time.process_time_ns() - began_ns) / rounds / 1000


def chunked(body: bytes, rounds: int, window: int) -> float:
    """Microseconds per message, a window at a time."""
    client = Transactions(Mode.BDAT)
    client.window = window
    replies = CHUNK * window
    began_ns = time.process_time_ns()
    for first in range(0, rounds, window):
        for number in range(first, first + window):
            client.submit(number, MAIL, RCPT, body, PARAMS)
        client.receive(replies)
    return (time.process_time_ns() - began_ns) / rounds / 1000


def best_of(cost: Callable[..., float], *more: int, size: int) -> float:
    """The least of five, that of the quietest moment."""
    return min(cost(body_of(size), 20_000, *more) for _ in range(5))


class Sending(asyncio.Protocol):
    """One pipelined session that takes messages from a common count."""

    def __init__(self, left: list[int], body: bytes) -> None:
        self._left = left
        self._body = body
        self._transactions = Transactions(Mode.PIPELINING)
        self._transport: asyncio.Transport
        self._greeted = False
        self.sent = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._greeted:
            self._greeted = True
            out = self._fill()
        else:
            concluded, out = self._transactions.receive(data)
            self.sent += len(concluded)
            out += self._fill()
        if out:
            self._transport.write(out)
        elif self._transactions.idle:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        self.done.set_result(None)

    def _fill(self) -> bytes:
        if not self._left[0] or not self._transactions.room():
            return b""
        self._left[0] -= 1
        return self._transactions.submit(self._left[0], MAIL, RCPT, self._body)


async def send_all(port: int, messages: int, sessions: int, body: bytes) -> float:
    """Seconds for all messages."""
    loop = asyncio.get_running_loop()
    left = [messages]
    began = time.perf_counter()
    made = [await loop.create_connection(lambda: Sending(left, body), "127.0.0.1", port) for _ in range(sessions)]
    await asyncio.gather(*(protocol.done for _, protocol in made))
    assert sum(protocol.sent for _, protocol in made) == messages
    return time.perf_counter() - began


def into_sink(body: bytes, messages: int, sessions: int) -> str:
    """One run against a fresh sink."""
    cores = sorted(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "actors.sink.actor", "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as sink:
        try:
            assert sink.stdout is not None
            port = json.loads(sink.stdout.readline())["port"]
            if len(cores) > 1:
                os.sched_setaffinity(sink.pid, {cores[-1]})
                os.sched_setaffinity(0, {cores[0]})
            process = psutil.Process(sink.pid)
            before = sum(process.cpu_times()[:2])
            took_s = uvloop.run(send_all(port, messages, sessions, body))
            cpu_us = (sum(process.cpu_times()[:2]) - before) / messages * 1e6
        finally:
            os.sched_setaffinity(0, set(cores))
            sink.terminate()
            sink.communicate(timeout=10)  # its counts
    return f"{messages / took_s:9,.0f} messages/s   sink {cpu_us:5.1f} us CPU each = {1e6 / cpu_us:7,.0f} a core"


def main() -> None:
    """Print both tables."""
    options = argparse.ArgumentParser()
    options.add_argument("--messages", type=int, default=50_000)
    arguments = options.parse_args()
    for size in (0, 4096, 40960):
        costs = [
            f"lock-step {best_of(lockstep, size=size):5.2f}",
            f"pipelining {best_of(pipelined, size=size):5.2f}",
            *(f"window of {window} {best_of(chunked, window, size=size):5.2f}" for window in (1, 4, 16)),
        ]
        print(f"Transactions, {size:6} bytes, us a message: {'   '.join(costs)}")
    for size in (4096, 40960):
        for sessions in (1, 10, 50):
            count = arguments.messages // (1 if size < 10_000 else 5)
            print(f"sink, {size:6} bytes, {sessions:3} sessions: {into_sink(body_of(size), count, sessions)}")


if __name__ == "__main__":
    main()
