"""An earlier TLS session is taken up again: at the same relay, under the same trust, and only if it stood."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from actors.smtp.session import SessionError, open_session
from actors.smtp.tls import Tls, expiry_s
from broker.contract.relay import Relay
from tests.fixtures.line_server import SILENCE, START_TLS, hear, line_server

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.certificate import Certificate

pytest_plugins = ["tests.fixtures.certificate"]

GREET = b"220 relay.example.com ready\r\n"
HELLO = [hear(b"EHLO"), b"250 relay.example.com\r\n"]
SECURE: dict[str, list[Any]] = {
    "implicit": [GREET, *HELLO, SILENCE],
    "required": [
        *(GREET, hear(b"EHLO"), b"250-relay.example.com\r\n250 STARTTLS\r\n"),
        *(hear(b"STARTTLS"), b"220 go\r\n", START_TLS, *HELLO, SILENCE),
    ],
}


def opened(server: Any, certificate: Certificate, **more: Any) -> Relay:
    table = {"host": server.host, "port": server.port, "ca_file": str(certificate.file), "ehlo_name": "me.example.com"}
    return Relay.model_validate(table | more)


async def secured(relay: Relay) -> Tls:
    """How a session to the relay is encrypted; it is closed again."""
    session = await open_session(relay)
    session.close()
    assert session.tls is not None
    return session.tls


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
@pytest.mark.parametrize("tls", list(SECURE))
def test_the_second_connection_takes_the_first_ones_session_up(
    certificate: Certificate, tls: str, version: ssl.TLSVersion
) -> None:
    """The handshake of the second and third connection is the short one, also with the ticket of TLS 1.3."""
    context = certificate.server_context()
    context.minimum_version = context.maximum_version = version

    async def work() -> list[Tls]:
        async with line_server(SECURE[tls], context=context, implicit=tls == "implicit") as server:
            relay = opened(server, certificate, tls=tls)
            return [await secured(relay) for _ in range(3)]

    found = uvloop.run(work())
    assert [one.resumed for one in found] == [False, True, True]
    assert {(one.version, one.verified) for one in found} == {(version.name.replace("_", "."), True)}


def test_a_session_whose_certificate_nobody_looked_at_is_not_taken_up_where_one_must(certificate: Certificate) -> None:
    """Opportunistic TLS trusts anybody; what it agreed on says nothing to a relay that requires a valid certificate."""

    async def work() -> list[Tls]:
        context = certificate.server_context()
        async with line_server(SECURE["required"], context=context) as server:
            mild, strict = (opened(server, certificate, tls=tls) for tls in ("opportunistic", "required"))
            stranger = opened(server, certificate, tls="required", ca_file="")
            found = [await secured(relay) for relay in (mild, mild, strict, strict)]
            with pytest.raises(SessionError, match="is not valid: self-signed certificate"):
                await open_session(stranger)
            return found

    found = uvloop.run(work())
    assert [(one.verified, one.resumed) for one in found] == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    ]


def test_a_session_is_not_taken_to_another_host(certificate: Certificate) -> None:
    """`localhost` and 127.0.0.1 are one server here, but a certificate was valid for one of the names only."""

    async def work() -> list[Tls]:
        async with line_server(SECURE["implicit"], context=certificate.server_context(), implicit=True) as server:
            names = [opened(server, certificate, tls="implicit", host=host) for host in ("127.0.0.1", "localhost")]
            return [await secured(relay) for relay in names]

    assert [one.resumed for one in uvloop.run(work())] == [False, False]


def test_a_session_that_never_stood_is_not_taken_up(certificate: Certificate) -> None:
    """A relay that closes right after the handshake: the next attempt makes a whole one."""
    broken = [*SECURE["required"][:6]]

    async def work() -> Tls:
        async with line_server(broken, SECURE["required"], context=certificate.server_context()) as server:
            relay = opened(server, certificate, tls="required")
            with pytest.raises(SessionError):
                await open_session(relay)
            return await secured(relay)

    assert not uvloop.run(work()).resumed


def test_a_server_that_lost_its_keys_is_met_with_a_whole_handshake(certificate: Certificate) -> None:
    """Restarted, it cannot read the ticket it gave: the session stands all the same."""

    async def work() -> list[Tls]:
        async with line_server(SECURE["implicit"], context=certificate.server_context(), implicit=True) as server:
            first = await secured(opened(server, certificate, tls="implicit"))
            port = server.port
        context = certificate.server_context()
        async with line_server(SECURE["implicit"], context=context, implicit=True, port=port) as server:
            return [first, await secured(opened(server, certificate, tls="implicit"))]

    assert [one.resumed for one in uvloop.run(work())] == [False, False]


def test_the_end_of_a_verified_certificate_is_told(certificate: Certificate) -> None:
    """Seconds since the epoch; of one that was not verified nothing is known."""

    async def work() -> list[int | None]:
        found = []
        async with line_server(SECURE["required"], context=certificate.server_context()) as server:
            for tls in ("required", "opportunistic"):
                session = await open_session(opened(server, certificate, tls=tls))
                found.append(expiry_s(session.transport.get_extra_info("ssl_object")))
                session.close()
        return found

    told, untold = uvloop.run(work())
    assert told is not None
    assert 0 < told - time.time() <= 2 * 86400  # the fixture makes it for two days
    assert untold is None
