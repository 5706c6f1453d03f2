"""A relay 25 ms away: what a window is for. Real round trips, a real Postfix at the far end, one connection.

Asserted as behaviour, several times faster than one message a round trip; the figures belong to `make bench`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import uvloop

from actors.smtp.session import open_session
from actors.smtp.transaction import Mode
from broker.contract.relay import Relay
from tests.fixtures.peers import need, need_root, open_directory, until_listening
from tests.fixtures.postfix import RunningPostfix
from tests.fixtures.scripted_relay import Message
from tests.fixtures.smtp_client import send
from tests.fixtures.smtp_sink import RunningSmtpSink
from tests.fixtures.wire import Wire, wire

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.lone_sender import StartLone

pytest_plugins = ["tests.fixtures.lone_sender"]

ROUND_TRIP_S = 0.05


@pytest.fixture(scope="module")
def line() -> Iterator[Wire]:
    """25 ms one way."""
    need_root()
    need("iproute2", "ip")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/net/tun")
    with wire(25) as standing:
        yield standing


@pytest.fixture(scope="module")
def far_postfix(line: Wire) -> Iterator[RunningPostfix]:
    """A Postfix at the far end, its queue in memory."""
    need("postfix", "postfix")
    need("sasl2-bin", "saslpasswd2")
    home = open_directory()
    running = RunningPostfix(home, line.far)
    yield running
    running.stop()
    shutil.rmtree(home)


def rate(line: Wire, relay: Relay, count: int, **more: int) -> tuple[Mode, float]:
    """The mode spoken and messages a second over one connection, opening and goodbye left out."""
    body = b"Subject: Hello\r\n\r\n" + b"x" * 70 + b"\r\n" + (b"y" * 76 + b"\r\n") * 50
    messages = [Message(rcpt=b"user%d@example.org" % n, body=body) for n in range(count)]
    with line.near.inside():
        session, conversation = send(relay, messages, **more)
    assert [c.event.value for c in conversation.concluded] == ["2xx"] * count
    return session.mode, count / (conversation.ended_s - conversation.began_s)


def test_windows_carry_several_messages_a_round_trip(line: Wire, far_postfix: RunningPostfix) -> None:
    """One connection: windows of BDAT five messages a round trip and more, groups nearly one, lock-step a quarter."""
    found = {}
    for port, count in (far_postfix.port, 400), (far_postfix.groups_port, 40), (far_postfix.lockstep_port, 10):
        relay = Relay.model_validate({"host": far_postfix.host, "port": port, "tls": "none"})
        mode, found_s = rate(line, relay, count)
        found[mode] = found_s * ROUND_TRIP_S  # messages a round trip
    assert found[Mode.BDAT] > 5
    assert 0.7 < found[Mode.PIPELINING] <= 2
    assert 0.15 < found[Mode.LOCKSTEP] <= 0.3


def test_a_sender_fills_its_windows_on_a_far_relay(
    line: Wire, far_postfix: RunningPostfix, lone_sender: StartLone
) -> None:
    """A real sender, one connection: what Postfix took is what the ledger says, in far fewer round trips than that."""
    people = [f"user{number}@far.example.org" for number in range(600)]
    with line.near.inside():
        lone = lone_sender(far_postfix, connections=1)
    lone.campaign(7, people)
    began = time.monotonic()
    counts = lone.wait_done(lone.offer(7))
    took_s = time.monotonic() - began
    assert (counts.sent, counts.attempts, counts.resent) == (600, 600, 0)
    assert sorted(to for _, to in far_postfix.delivered("far.example.org", count=600)) == sorted(people)
    assert 600 * ROUND_TRIP_S / took_s > 3, f"600 messages in {took_s:.1f} s"


def test_round_trips_of_a_relay_check_are_those_of_the_wire(line: Wire, far_postfix: RunningPostfix) -> None:
    """A NOOP takes 50 ms here; a TLS session taken up again opens no slower than a new one."""

    async def work() -> tuple[float, bool]:
        relay = Relay.model_validate(
            {"host": far_postfix.host, "port": far_postfix.port, "tls": "required", "ca_file": str(far_postfix.ca_file)}
        )
        (await open_session(relay)).close()
        session = await open_session(relay)
        took_s = ROUND_TRIP_S * 100
        for _ in range(5):  # the quickest: a busy machine delays some
            began = time.monotonic()
            await session.noop()
            took_s = min(took_s, time.monotonic() - began)
        session.close()
        assert session.tls is not None
        return took_s, session.tls.resumed

    with line.near.inside():
        took_s, resumed = uvloop.run(work())
    assert ROUND_TRIP_S <= took_s < 4 * ROUND_TRIP_S
    assert resumed


def test_a_wire_that_loses_packets_loses_no_messages() -> None:
    """5% of all packets gone: TCP says them again, and every message is taken once."""
    need_root()
    need("postfix", "smtp-sink")
    home = open_directory()
    with wire(2, loss_percent=5) as lossy, lossy.near.inside():
        sink = RunningSmtpSink((), home, lossy.far)
        try:
            until_listening(sink.port, host=sink.host)
            relay = Relay.model_validate({"host": sink.host, "port": sink.port, "tls": "none"})
            people = [f"user{number}@example.org" for number in range(150)]
            _, conversation = send(relay, [Message(rcpt=to.encode()) for to in people])
            assert [c.event.value for c in conversation.concluded] == ["2xx"] * len(people)
            assert sorted(one.rcpt for one in sink.messages()) == sorted(f"<{to}>" for to in people)
        finally:
            sink.stop()
            shutil.rmtree(home)
