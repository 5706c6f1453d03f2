"""How a relay's addresses are tried, and what the socket is like that one of them leads to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import psutil
import pytest
import uvloop

from actors.smtp import dial as dialling
from actors.smtp.dial import AT_ONCE, SEND_BUFFER, Address, SourceError, dial, race
from actors.smtp.session import SessionError, open_session
from broker.contract.relay import Relay
from tests.fixtures.line_server import SILENCE, hear, line_server
from tests.fixtures.peers import free_ports

HELLO: list[Any] = [b"220 relay.example.com ready\r\n", hear(b"EHLO"), b"250 relay.example.com\r\n", SILENCE]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """On uvloop, as in a sender."""
    return uvloop.run(work)


@contextlib.contextmanager
def listening(host: str = "127.0.0.1", *, backlog: int = 8) -> Iterator[tuple[Address, socket.socket]]:
    """Somebody to connect to: an address, and the socket behind it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        server.bind((host, 0))
        server.listen(backlog)
        yield (family, server.getsockname()), server


@contextlib.contextmanager
def swallowing() -> Iterator[Address]:
    """An address that never answers: its queue is full, so the kernel drops what knocks."""
    with listening("127.0.0.2", backlog=0) as (address, _), contextlib.ExitStack() as knocking:
        for _ in range(4):
            one = knocking.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(address[1])
        yield address


def nobody() -> Address:
    """An address at which nobody listens."""
    return socket.AF_INET, ("127.0.0.1", free_ports(1)[0])


def test_an_address_that_leads_nowhere_costs_a_quarter_of_a_second() -> None:
    """The next one is tried meanwhile; the deadline of the whole is not used up by the first."""

    async def work(addresses: list[Address]) -> tuple[Any, float]:
        began = time.monotonic()
        with await race(addresses) as connected:
            return connected.getpeername(), time.monotonic() - began

    with swallowing() as silent, listening() as (good, _):
        reached, took_s = run(work([silent, silent, good]))
        assert reached == good[1]
        assert 0.45 < took_s < 5  # two head starts; the kernel itself would give up after two minutes


def test_a_refusal_moves_on_at_once_and_the_last_one_is_told() -> None:
    """Refused is an answer: no waiting; when all refuse, that is the error."""

    async def work(addresses: list[Address]) -> float:
        began = time.monotonic()
        (await race(addresses)).close()
        return time.monotonic() - began

    with listening() as (good, _):
        assert run(work([nobody(), nobody(), good])) < 0.2
    with pytest.raises(ConnectionRefusedError):
        run(work([nobody(), nobody()]))


@pytest.mark.parametrize("end", ["won", "cancelled"])
def test_attempts_nobody_waits_for_leave_no_socket(end: str) -> None:
    """Won by another address, or cancelled: what was under way is closed."""

    async def work(addresses: list[Address]) -> None:
        before = psutil.Process().num_fds()
        attempt = asyncio.create_task(race(addresses))
        if end == "won":
            (await attempt).close()
        else:
            await asyncio.sleep(0)
            attempt.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attempt
        async with asyncio.timeout(5):
            while psutil.Process().num_fds() > before or len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.001)

    with swallowing() as silent, listening() as (good, _):
        run(work([silent, good] if end == "won" else [silent, silent]))


def test_who_has_an_address_has_one_socket() -> None:
    """The attempts that lost are closed when the winner is handed over, not a moment later."""

    async def work(addresses: list[Address]) -> int:
        before = psutil.Process().num_fds()
        with await race(addresses):
            return psutil.Process().num_fds() - before

    with swallowing() as silent, listening() as (good, _):
        assert run(work([silent, silent, good])) == 1


def test_many_silent_addresses_are_not_all_tried_at_once() -> None:
    """The oldest attempt gives way, and the address that answers is reached however late it stands."""

    async def work(addresses: list[Address]) -> int:
        before = psutil.Process().num_fds()
        most = 0
        attempt = asyncio.create_task(race(addresses))
        while not attempt.done():
            most = max(most, psutil.Process().num_fds() - before)
            await asyncio.sleep(0.01)
        attempt.result().close()
        return most

    with swallowing() as silent, listening() as (good, _):
        assert run(work([silent] * 8 + [good])) <= AT_ONCE + 1


def test_an_address_that_the_resolver_names_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay with one address is never knocked at by two sockets."""

    async def work(found: Address) -> None:
        loop = asyncio.get_running_loop()

        async def twice(*_: object, **__: object) -> list[Any]:
            return [(found[0], socket.SOCK_STREAM, 6, "", found[1])] * 2

        monkeypatch.setattr(loop, "getaddrinfo", twice)
        monkeypatch.setattr(dialling, "race", None)
        (await dial("relay.example.com", 25)).close()

    with listening() as (good, _):
        asyncio.run(work(good))


@pytest.mark.parametrize("host", ["::1", "127.0.0.1", "localhost"])
def test_a_session_opens_over_either_family(host: str) -> None:
    """A literal of either kind, and a name; the socket is ready for a window."""

    async def work() -> None:
        async with line_server(HELLO, host=host) as server:
            session = await open_session(Relay.model_validate({"host": host, "port": server.port, "tls": "none"}))
            endpoint = session.transport.get_extra_info("socket")
            assert endpoint.getpeername()[0] in ("::1", "127.0.0.1")
            assert endpoint.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert endpoint.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
            session.close()
            if host == "::1" and "." not in socket.getfqdn():
                assert server.heard == [b"EHLO [IPv6:::1]"]

    run(work())


def test_a_window_leaves_in_one_write_although_nobody_reads() -> None:
    """256 kB are taken by the kernel at once: the send buffer holds them, whatever the other end takes."""

    async def work(port: int) -> int:
        with await dial("127.0.0.1", port) as connected:
            return connected.send(b"x" * SEND_BUFFER)

    with listening() as (address, server):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert run(work(int(address[1][1]))) == SEND_BUFFER


def test_connections_come_from_the_source_address() -> None:
    """The relay sees the address that was asked for."""

    async def work(port: int, source: str) -> None:
        (await dial("127.0.0.1", port, source)).close()

    with listening() as (address, server):
        run(work(int(address[1][1]), "127.0.0.9"))
        connected, (seen, _) = server.accept()
        connected.close()
        assert seen == "127.0.0.9"
        with pytest.raises(SourceError, match="no address of its family"):
            run(work(int(address[1][1]), "::1"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [("192.0.2.1", "Cannot assign requested address"), ("::1", "127.0.0.1 has no address of its family")],
)
def test_a_source_address_that_cannot_be_used_is_a_setting_of_ours(source: str, reason: str) -> None:
    """Not the relay's fault: the line names the setting, and how to mend it."""
    relay = Relay.model_validate({"host": "127.0.0.1", "port": free_ports(1)[0], "source_address": source})
    with pytest.raises(SessionError) as caught:
        run(open_session(relay))
    assert caught.value.blames == "sender"
    assert caught.value.text == f"cannot connect from source_address {source}: {reason}"
    assert caught.value.hint == "name an address of this machine, of a family that the relay has"
