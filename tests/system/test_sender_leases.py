"""Leases that end or change while a sender works them: faults of files, orders (actors/sender/{actor,leases}.py)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shm.live.heartbeat import Heartbeats
from shm.live.leases import RUN

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.lone_sender import StartLone
    from tests.fixtures.sink import StartSink

pytest_plugins = ["tests.fixtures.lone_sender"]
ROW = 1
WINDOW = 16


def people(n: int) -> list[str]:
    return [f"user{number}@example.com" for number in range(n)]


def test_nothing_leaves_under_a_lease_that_has_failed(sink: StartSink, lone_sender: StartLone) -> None:
    """The words of a refusal cannot be kept: of the many that are ready only what was in flight is attempted."""
    lone = lone_sender(sink(), connections=1)
    refused = 4
    lone.campaign(7, [*people(refused), "bounce@example.com", *(f"late{n}@example.com" for n in range(2000))])
    lone.state.replies(7, 1).write_bytes(b"recipients, not replies at all")
    number = lone.offer(7)
    message = lone.wait_message("lease.failed")
    assert (message["number"], "magic" in message["reason"]) == (number, True)
    counts = lone.counts(7)
    assert (counts.bounced, counts.in_flight) == (1, 0)
    assert refused < counts.attempts <= refused + 1 + WINDOW


def test_rows_that_waited_for_grants_leave_at_once_when_the_lease_is_free(
    sink: StartSink, lone_sender: StartLone
) -> None:
    """The limit is gone, the connection stands idle, nothing is left to claim: nobody waits for a timer."""
    lone = lone_sender(sink(), connections=1)
    lone.campaign(7, people(5))
    number = lone.offer(7, gated=True)
    lone.wait(lambda: lone.grants.read(ROW, 0)[3] >= 5, "5 wanted")
    while not lone.counts(7).sent:  # what lapses on a busy machine is granted again
        lone.grant(number, 1)
        lone.wait(lambda: sum(lone.grants.read(ROW, 0)[1:3]) == lone.grants.granted(ROW, 0), "spent or returned")
        lone.wait(lambda: lone.counts(7).attempts == lone.counts(7).sent, "an answer")
    beats, seen_ns = Heartbeats(lone.arena), time.monotonic_ns()
    lone.wait(lambda: beats.row(ROW).beat_ns > seen_ns + 10**9, "a second in which nothing is to be done")
    assert lone.counts(7).sent == 1
    began = time.monotonic()
    lone.order(number, RUN, gated=False)
    assert lone.wait_done(number).sent == 5
    assert time.monotonic() - began < 10


def test_a_lease_whose_trace_cannot_be_opened_is_given_back_with_the_reason(
    sink: StartSink, lone_sender: StartLone
) -> None:
    """The sender lives on, and works the shard when it is offered again."""
    lone = lone_sender(sink(), settings={"engine": {"trace": True}})
    lone.campaign(7, people(3))
    lone.state.trace.touch()  # a file where the directory should be
    number = lone.offer(7)
    message = lone.wait_message("lease.failed")
    assert (message["number"], message["reason"]) == (number, "the trace cannot be kept: File exists")
    lone.table.free(ROW, 0)
    lone.state.trace.unlink()
    assert lone.wait_done(lone.offer(7)).sent == 3
