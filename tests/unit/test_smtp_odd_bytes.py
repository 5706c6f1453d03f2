"""Sessions with relays that say what no standard allows: each opens, or is one relay's failure and no more."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import uvloop

from actors.smtp import session as session_module
from actors.smtp.dial import dial
from actors.smtp.reply import read_text
from actors.smtp.session import Session, SessionError, open_session
from broker.contract.endpoint import Endpoint
from broker.contract.relay import Relay
from tests.fixtures.line_server import SILENCE, LineServer, hear, line_server

GREET = b"220 relay.example.com ready\r\n"
HELLO = b"250 relay.example.com\r\n"


def endpoint(server: LineServer, **more: Any) -> Endpoint:
    """The server as a relay."""
    table = {"name": "odd", "host": server.host, "port": server.port, "tls": "none", "ehlo_name": "me.example.com"}
    return Endpoint.from_map(Relay.model_validate({**table, **more}).to_map())


def opened(*script: Any, **more: Any) -> Session:
    """A session with a server that speaks so, closed again. Raises SessionError."""

    async def work() -> Session:
        async with line_server(script) as server:
            session = await open_session(endpoint(server, **more))
            session.close()
            return session

    session: Session = uvloop.run(work())
    return session


def test_a_greeting_in_latin_1_is_no_obstacle() -> None:
    """Its bytes are shown as such, and what is shown can be written to any file."""
    session = opened(b"220 m\xfcller.example ESMTP\r\n", hear(b"EHLO"), HELLO, SILENCE)
    assert session.banner == "m\\xfcller.example ESMTP"


@pytest.mark.parametrize(
    "script",
    [
        [b"421 4.3.2 m\xfcller is busy\r\n"],
        [GREET, hear(b"EHLO"), b"451 4.3.2 m\xfcller is busy\r\n", SILENCE],
    ],
    ids=["greeting", "ehlo"],
)
def test_a_refusal_in_latin_1_is_a_refusal(script: list[Any]) -> None:
    """With its code, and a text of which every character can be written."""
    with pytest.raises(SessionError, match="is busy") as caught:
        opened(*script)
    assert caught.value.reply is not None
    assert caught.value.text.encode().isascii()


def test_latin_1_in_what_is_offered_can_be_written() -> None:
    """Mechanisms and extensions that are no ASCII: in the features, and in an error."""
    hello = b"250-relay.example.com\r\n250-M\xdcLL\r\n250 AUTH M\xdcLL\r\n"
    with pytest.raises(SessionError, match="no way to log in") as caught:
        opened(GREET, hear(b"EHLO"), hello, SILENCE, username="me", password="secret")
    assert caught.value.text.encode()

    features = opened(GREET, hear(b"EHLO"), hello, SILENCE).features
    assert json.dumps(features.auth, ensure_ascii=False).encode()


@pytest.mark.parametrize("size", [b"9" * 5000, "\u0663\u0663".encode(), b"\xb2", b"-1"])
def test_a_size_that_is_no_number_is_no_limit(size: bytes) -> None:
    """More digits than Python reads, digits of another script, a superscript."""
    session = opened(GREET, hear(b"EHLO"), b"250-relay.example.com\r\n250 SIZE " + size + b"\r\n", SILENCE)
    assert session.features.size == 0


def test_whatever_goes_wrong_is_one_relays_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody thought of: a SessionError that names it."""

    def broken(*_: object) -> None:
        raise LookupError("no such \udcfcthing")

    monkeypatch.setattr(session_module, "_features", broken)
    with pytest.raises(SessionError, match=r"LookupError: no such \\xfcthing"):
        opened(GREET, hear(b"EHLO"), HELLO, SILENCE)


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example"])
def test_a_host_that_is_no_name_cannot_be_resolved(host: str) -> None:
    """Settings refuse it; whoever passes it all the same is told so, as of any unknown name."""
    with pytest.raises(OSError, match="no host name"):
        asyncio.run(dial(host, 25))


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", ".example.com"])
def test_settings_refuse_a_host_that_is_no_name(host: str) -> None:
    """In one clear line; a last dot, an underscore and addresses are names all right."""
    with pytest.raises(ValueError, match="names no valid host"):
        Relay(host=host)
    for good in ("example.com.", "my_relay", "::1", "fe80::1%eth0", "192.0.2.1", "m\u00fcller.example"):
        assert Relay(host=good).host == good


def test_a_pasted_reply_with_a_lone_surrogate_is_read() -> None:
    """As a terminal hands over bytes that are no UTF-8."""
    assert read_text("550 5.1.1 m\udcfcller").text == "m\\udcfcller"
