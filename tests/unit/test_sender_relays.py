"""The connections to one relay (actors/sender/relays.py): when they are opened, and what their ends are taken for."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, cast

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from actors.sender import relays as pools
from actors.sender.backoff import FIRST_S, MAX_S, backoff_s
from actors.sender.connection import Connection
from actors.sender.relays import Pool
from actors.sender.walk import Walk
from broker.contract.endpoint import Endpoint
from broker.contract.relay import Relay
from shm.arena import Arena, Shape
from shm.live.relays import CONNECTIONS, FAILURES, RelayState, RelayTable

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_waits_grow_to_the_cap_and_stay_there(failures: int, noise: float) -> None:
    """Never shorter than the first, never longer than one and a half times the cap, never shorter than before."""
    wait_s = backoff_s(failures, noise)
    assert FIRST_S <= wait_s <= 1.5 * MAX_S
    assert backoff_s(failures + 1, noise) >= wait_s


class Nobody:
    """A walk that has nothing to send."""

    def at_ns(self, monotonic_ns: int) -> int:
        return monotonic_ns

    def refill(self, connection: Connection, _out: bytes, _now_s: int = 0) -> None:
        if not connection.waiting and not connection.ended:
            connection.pool.rest(connection)

    def conclude(self, *_: object) -> None:
        raise AssertionError("nothing was sent")


@pytest.fixture
def table() -> Iterator[RelayTable]:
    """The relays of an arena of one sender, four connections allowed."""
    arena = Arena.create(f"/ecm-{secrets.token_hex(6)}", Shape(actors=1, slots=1, relays=1), "0" * 12, "boot")
    relays = RelayTable(arena)
    relays.allow(0, 0, 4, RelayState.UP, 0)
    yield relays
    del relays
    arena.close()
    Arena.unlink(arena.name)


async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A relay's side of a session that opens."""
    writer.write(b"220 relay.example.com\r\n")
    await reader.readline()
    writer.write(b"250-relay.example.com\r\n250 PIPELINING\r\n")


@contextlib.asynccontextmanager
async def pool_to(talk: Talk, table: RelayTable, faults: list[str]) -> AsyncIterator[Pool]:
    """A pool to a relay that talks so; in the end both are closed."""
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    relay = Relay(name="default", host="127.0.0.1", port=port, tls="none", ehlo_name="me.example.com", connections=4)
    pool = Pool(0, Endpoint.from_map(relay.to_map()), 0, table, cast("Walk", Nobody()), faults.append)
    try:
        yield pool
    finally:
        pool.abort()
        while pool.connections or pool._opening:
            await asyncio.sleep(0)
        server.close()
        await server.wait_closed()


async def ticking(pool: Pool, seen: Callable[[], object], within_s: float = 5.0) -> None:
    """The sender's periodic look, until something is seen."""
    deadline_s = time.monotonic() + within_s
    while not seen():
        assert time.monotonic() < deadline_s
        pool.tick(time.monotonic_ns(), wanted=True)
        await asyncio.sleep(0.01)


def test_an_error_of_no_known_kind_is_the_relays_and_is_rested_from(
    table: RelayTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No exception is lost in a task, which would end the sender; attempts are as far apart as after any failure."""
    tries: list[float] = []
    unnamed: list[dict[str, Any]] = []

    async def odd(*_: object, **__: object) -> None:
        tries.append(time.monotonic())
        raise LookupError("odd")

    async def work() -> list[str]:
        faults: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unnamed.append(context))
        async with pool_to(polite, table, faults) as pool:
            await ticking(pool, lambda: len(tries) == 3)
        return faults

    monkeypatch.setattr(pools, "open_session", odd)
    faults = uvloop.run(work())
    assert not unnamed
    assert "LookupError: odd" in faults[0]
    assert table.words(0, 0)[FAILURES] >= 2
    assert tries[1] - tries[0] >= FIRST_S
    assert tries[2] - tries[1] >= 2 * FIRST_S


def test_an_idle_connection_that_the_relay_closes_is_no_failure(table: RelayTable) -> None:
    """Nothing is told, nothing begins anew; another comes a little later, and at once for rows that wait."""
    opened_at: list[float] = []

    async def fickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened_at.append(time.monotonic())
        await polite(reader, writer)
        await asyncio.sleep(0.05)
        writer.close()

    async def work() -> None:
        faults: list[str] = []
        async with pool_to(fickle, table, faults) as pool:
            await ticking(pool, lambda: len(opened_at) == 2 and not pool.connections)
            pool.lanes = cast("Any", [object()])  # rows wait
            await ticking(pool, lambda: len(opened_at) == 3)
            pool.lanes = cast("Any", [])
        assert not faults

    uvloop.run(work())
    assert table.words(0, 0)[FAILURES] == 0
    assert opened_at[1] - opened_at[0] >= 1
    assert opened_at[2] - opened_at[1] < 1


def test_a_connection_that_has_said_goodbye_is_never_free_again(table: RelayTable) -> None:
    """Whatever the socket or the relay still tell of it while the answer to QUIT is awaited."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await polite(reader, writer)
        await reader.readline()
        writer.write(b"221 2.0.0 ")
        await reader.read()
        writer.close()

    async def work() -> None:
        async with pool_to(slow, table, []) as pool:
            await ticking(pool, lambda: pool.free)
            (connection,) = pool.free
            pool._dismiss(connection)
            connection.resume_writing()
            assert not pool.free
            assert connection.room() == 0
            read_ns = connection.used_ns
            while connection.used_ns == read_ns:
                await asyncio.sleep(0.001)
            assert not pool.free

    uvloop.run(work())


def test_a_connection_that_opens_waits_for_work(table: RelayTable) -> None:
    """It stands among the free, once, and the arena tells of it."""

    async def work() -> None:
        async with pool_to(polite, table, []) as pool:
            await ticking(pool, lambda: pool.free)
            assert len(pool.free) == table.words(0, 0)[CONNECTIONS] == 1

    uvloop.run(work())
