"""Finds a relay's addresses and connects to the first that answers (RFC 8305), with the socket as our writes want it.

May not speak SMTP or TLS; deadlines are the caller's.

- IPv6 first, the families in turn; the next address is tried while the one before has not answered for a quarter of a
  second, so a family that leads nowhere costs that much and not the whole deadline.
- A source address keeps to its own family.
- Every socket but the one returned is closed when it is returned, cancelled attempts' too.
- A relay with one address is knocked at by one socket, one with several by AT_ONCE at most.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import socket
from collections import deque
from typing import Final

__all__ = ["AT_ONCE", "SEND_BUFFER", "Address", "SourceError", "dial", "race"]

SEND_BUFFER: Final = 256 * 1024  # bytes: a whole window fits, so a write never waits for the first ACK
AT_ONCE: Final = 6  # attempts at a time; the oldest has had time to say SYN a second time by then
_HEAD_START_S: Final = 0.25  # RFC 8305 5
_KEEPALIVE: Final = (  # a connection at rest that died is known within 30 s, and a NAT between keeps its entry
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
_IP_BIND_ADDRESS_NO_PORT: Final = 24  # linux/in.h; the socket module does not name it

Address = tuple[socket.AddressFamily, tuple[str | int | bytes, ...]]


class SourceError(OSError):
    """The source address cannot be used: it is not ours, or the relay has no address of its family."""


async def dial(host: str, port: int, source: str = "") -> socket.socket:
    """A connected, non-blocking socket.

    source  an address of this machine to connect from; empty = the system's choice
    Raises socket.gaierror if the name does not resolve, SourceError, or the OSError of the address tried last.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # an empty label or one too long: no name that could be asked for
        raise socket.gaierror(socket.EAI_NONAME, f"no host name: {error}") from None
    addresses = _in_turn(list(dict.fromkeys((family, address) for family, _, _, _, address in found)))
    if source:
        family = socket.AF_INET6 if ipaddress.ip_address(source).version == 6 else socket.AF_INET
        addresses = [one for one in addresses if one[0] == family]
        if not addresses:
            raise SourceError(f"{host} has no address of its family")
    if len(addresses) == 1:
        return await _connect(addresses[0], source)
    return await race(addresses, source)


def _in_turn(addresses: list[Address]) -> list[Address]:
    """The families in turn, each in the resolver's order, the family of its first answer first."""
    first = [one for one in addresses if one[0] == addresses[0][0]]
    second = [one for one in addresses if one[0] != addresses[0][0]]
    return [one for pair in itertools.zip_longest(first, second) for one in pair if one is not None]


async def race(addresses: list[Address], source: str = "") -> socket.socket:
    """The first of these addresses to answer. Raises what `dial` does."""
    waiting = deque(addresses)
    trying: list[asyncio.Task[socket.socket]] = []  # the oldest first
    error: BaseException | None = None
    try:
        while waiting or trying:
            if waiting:
                if len(trying) == AT_ONCE:
                    _give_up(trying.pop(0))
                trying.append(asyncio.create_task(_connect(waiting.popleft(), source)))
            patience_s = _HEAD_START_S if waiting else None
            done, _ = await asyncio.wait(trying, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                trying.remove(task)
                error = task.exception()
                if error is None:
                    try:
                        await _given_up(trying + [other for other in done if other is not task])
                    except BaseException:  # cancelled meanwhile
                        task.result().close()
                        raise
                    return task.result()
        assert error is not None
        raise error
    finally:
        for task in trying:
            _give_up(task)


async def _given_up(tasks: list[asyncio.Task[socket.socket]]) -> None:
    """Give these up, and see their sockets closed: whoever counts sockets counts one a relay."""
    for task in tasks:
        _give_up(task)
    if tasks:
        await asyncio.wait(tasks)


def _give_up(task: asyncio.Task[socket.socket]) -> None:
    task.cancel()
    task.add_done_callback(_close)


def _close(task: asyncio.Task[socket.socket]) -> None:
    """Close what an attempt nobody waits for any more has brought."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _connect(to: Address, source: str) -> socket.socket:
    family, address = to
    endpoint = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _prepare(endpoint)
        if source:
            _bind(endpoint, source)
        await asyncio.get_running_loop().sock_connect(endpoint, address)
    except BaseException:  # cancelled ones too
        endpoint.close()
        raise
    return endpoint


def _prepare(endpoint: socket.socket) -> None:
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    # Groups are written whole: Nagle's algorithm could only hold the last segment back.
    endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in _KEEPALIVE:
        endpoint.setsockopt(*option)


def _bind(endpoint: socket.socket, source: str) -> None:
    # The port is chosen at connect, where it need only differ from others to the same relay.
    endpoint.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    try:
        endpoint.bind((source, 0))
    except OSError as error:
        raise SourceError(error.errno, error.strerror) from None
