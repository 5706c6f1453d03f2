"""How sessions open and fail to, against a server that speaks from a script over a real socket."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from actors.smtp.check import check
from actors.smtp.session import Features, Session, SessionError, deadline_s, open_session
from actors.smtp.transaction import Mode, Stage
from broker.contract.endpoint import Endpoint
from broker.contract.relay import Relay
from tests.fixtures.line_server import SILENCE, SOMETHING, START_TLS, LineServer, hear, line_server

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.certificate import Certificate

pytest_plugins = ["tests.fixtures.certificate"]

GREET = b"220 relay.example.com ready\r\n"
HELLO: list[Any] = [GREET, hear(b"EHLO"), b"250-relay.example.com\r\n250-PIPELINING\r\n250 SIZE 1000\r\n"]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """On uvloop, as in a sender."""
    return uvloop.run(work)


def relay_to(server: LineServer, **more: Any) -> Relay:
    """Settings of a relay at the server."""
    table = {"name": "scripted", "host": server.host, "port": server.port, "tls": "none", "ehlo_name": "me.example.com"}
    return Relay.model_validate({**table, **more})


def refused(*script: Any, **more: Any) -> tuple[SessionError, list[bytes]]:
    """The error with which a session to a server with this script fails, and what the server heard."""
    context, implicit = more.pop("context", None), more.get("tls") == "implicit"

    async def work() -> tuple[SessionError, list[bytes]]:
        async with line_server(script, context=context, implicit=implicit) as server:
            with pytest.raises(SessionError) as caught:
                await open_session(relay_to(server, **more))
            return caught.value, server.heard

    result: tuple[SessionError, list[bytes]] = run(work())
    return result


def opened(
    *scripts: Sequence[Any], context: Any = None, ceiling: Mode = Mode.PIPELINING, **more: Any
) -> tuple[Session, LineServer]:
    """A session that opens, closed again."""

    async def work() -> tuple[Session, LineServer]:
        async with line_server(*scripts, context=context, implicit=more.get("tls") == "implicit") as server:
            session = await open_session(relay_to(server, **more), ceiling=ceiling)
            session.close()
            return session, server

    result: tuple[Session, LineServer] = run(work())
    return result


def test_features_decide_the_mode() -> None:
    """PIPELINING announced is used, unless the ceiling is lower; parameters follow the announcements."""
    session, server = opened([*HELLO, SILENCE])
    assert (session.mode, session.tls, session.banner) == (Mode.PIPELINING, None, "relay.example.com ready")
    assert session.features == Features(pipelining=True, size=1000)
    assert server.heard == [b"EHLO me.example.com"]
    assert opened([*HELLO, SILENCE], ceiling=Mode.LOCKSTEP)[0].mode is Mode.LOCKSTEP


@pytest.mark.parametrize("last", [b"250 SIZE\r\n", b"250 \r\n", b"250 XCLIENT NAME ADDR\r\n"])
def test_odd_ehlo_lines_are_survived(last: bytes) -> None:
    """SIZE without a number, an empty last line (smtp-sink), extensions nobody here knows."""
    session, _ = opened([GREET, hear(b"EHLO"), b"250-relay.example.com\r\n250-8BITMIME\r\n" + last, SILENCE])
    assert session.features.eightbitmime
    assert session.mode is Mode.LOCKSTEP
    assert session.features.size == (0 if b"SIZE" in last else None)


def test_mail_parameters_use_only_what_was_announced() -> None:
    """SIZE, BODY=8BITMIME and SMTPUTF8 where offered and needed."""
    everything = Features(size=0, eightbitmime=True, smtputf8=True)
    assert everything.params(b"abc\r\n") == b"SIZE=5"
    assert everything.params("ä\r\n".encode(), smtputf8=True) == b"SIZE=4 BODY=8BITMIME SMTPUTF8"
    assert Features().params("ä\r\n".encode(), smtputf8=True) == b""


def test_a_server_without_extensions_is_greeted_the_old_way() -> None:
    """EHLO refused for good: HELO, and lock-step."""
    session, _ = opened([GREET, hear(b"EHLO"), b"502 what?\r\n", hear(b"HELO me.example.com"), b"250 hi\r\n", SILENCE])
    assert session.mode is Mode.LOCKSTEP
    assert session.features == Features()


def test_without_a_name_we_are_called_by_our_address_or_full_name() -> None:
    """A host without a full name says its address literal (RFC 5321 4.1.3)."""
    _, server = opened([*HELLO, SILENCE], ehlo_name="")
    expected = socket.getfqdn() if "." in socket.getfqdn() else "[127.0.0.1]"
    assert server.heard == [b"EHLO " + expected.encode()]


@pytest.mark.parametrize(
    ("script", "stage", "code", "text"),
    [
        ([b"554 5.7.1 not you\r\n"], Stage.CONNECT, 554, "refused the connection: 554 5.7.1 not you"),
        ([b"421 busy\r\n"], Stage.CONNECT, 421, "refused the connection: 421 busy"),
        ([], Stage.CONNECT, None, "closed the connection (greeting)"),
        ([b"HTTP/1.1 400 Bad\r\n", SILENCE], Stage.CONNECT, None, "does not speak SMTP"),
        ([GREET, hear(b"EHLO")], Stage.EHLO, None, "closed the connection (EHLO)"),
        ([GREET, hear(b"EHLO"), b"421 4.3.2 no\r\n"], Stage.EHLO, 421, "refused the EHLO: 421 4.3.2 no"),
        ([GREET, hear(b"EHLO"), b"450 4.3.2 no\r\n", SILENCE], Stage.EHLO, 450, "refused the EHLO: 450 4.3.2 no"),
        ([GREET, hear(b"EHLO"), b"nonsense\r\n", SILENCE], Stage.EHLO, None, "does not speak SMTP"),
    ],
)
def test_a_failed_opening_says_what_and_where(script: list[Any], stage: Stage, code: int | None, text: str) -> None:
    """Refused, closed, or another protocol: one line with the relay's place, the stage, and its own words."""
    error, _ = refused(*script)
    assert (error.stage, error.blames) == (stage, "relay")
    assert (None if error.reply is None else error.reply.code) == code
    assert text in error.text
    assert "127.0.0.1:" in error.text
    assert "\n" not in error.text


@pytest.mark.parametrize(
    ("script", "stage", "timeout"),
    [([SILENCE], Stage.CONNECT, "greeting"), ([GREET, hear(b"EHLO"), SILENCE], Stage.EHLO, "command")],
)
def test_a_silent_relay_runs_into_its_deadline(script: list[Any], stage: Stage, timeout: str) -> None:
    """Every stage has a deadline; what is silent is an error, not a wait."""
    times = {"connect": 0.05, "greeting": 0.05, "command": 0.05, "body": 1.0, "idle": 1.0}
    error, _ = refused(*script, timeouts_s=times)
    assert error.stage is stage
    assert "no answer from 127.0.0.1:" in error.text


@pytest.mark.parametrize(
    ("script", "more", "stage"),
    [
        (
            [GREET, hear(b"EHLO"), b"250-x\r\n250 STARTTLS\r\n", hear(b"STARTTLS"), SILENCE],
            {"tls": "required"},
            Stage.TLS,
        ),
        (
            [GREET, hear(b"EHLO"), b"250-x\r\n250 STARTTLS\r\n", hear(b"STARTTLS"), b"220 go\r\n", SILENCE],
            {"tls": "required"},
            Stage.TLS,
        ),
        (
            [GREET, hear(b"EHLO"), b"250-x\r\n250 AUTH PLAIN\r\n", hear(b"AUTH"), SILENCE],
            {"username": "me", "password": "pw"},
            Stage.AUTH,
        ),
    ],
    ids=["STARTTLS", "handshake", "AUTH"],
)
def test_silence_on_the_way_into_a_session_has_an_end(script: list[Any], more: dict[str, Any], stage: Stage) -> None:
    """No reply to STARTTLS, no handshake behind it, no reply to AUTH: an error of that stage."""
    times = {"connect": 0.1, "greeting": 0.1, "command": 0.1, "body": 1.0, "idle": 1.0}
    error, _ = refused(*script, timeouts_s=times, **more)
    assert error.stage is stage
    assert "no answer from 127.0.0.1:" in error.text


def test_implicit_tls_with_a_server_that_says_nothing_has_an_end() -> None:
    """Nobody answers the first bytes of TLS: that is connecting, with the deadline of connecting."""

    async def work() -> SessionError:
        async with line_server([SILENCE]) as server:  # in the clear: it never begins TLS
            times = {"connect": 0.1, "greeting": 5.0, "command": 5.0, "body": 5.0, "idle": 5.0}
            with pytest.raises(SessionError) as caught:
                await open_session(relay_to(server, tls="implicit", timeouts_s=times))
            return caught.value

    began = time.monotonic()
    error = run(work())
    assert time.monotonic() - began < 3
    assert "no answer from 127.0.0.1:" in error.text


def test_every_stage_has_a_deadline() -> None:
    """The table of deadlines names each stage there is."""
    relay = Relay.model_validate({"host": "127.0.0.1"})
    assert all(deadline_s(relay, stage) > 0 for stage in Stage)


def test_nobody_there_and_no_such_host_are_told_apart() -> None:
    """Connection refused blames the relay; a name that does not resolve is a setting of ours."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets the port
        port = taken.getsockname()[1]
        with pytest.raises(SessionError, match=f"cannot connect to 127.0.0.1:{port}: Connection refused") as caught:
            run(open_session(Relay.model_validate({"host": "127.0.0.1", "port": port})))
    assert caught.value.blames == "relay"
    with pytest.raises(SessionError, match=r"cannot resolve nowhere\.invalid: ") as caught:
        run(open_session(Relay.model_validate({"host": "nowhere.invalid"})))
    assert caught.value.blames == "sender"


def test_what_to_do_about_it_fits_what_happened() -> None:
    """A name, another service, a port that waits for TLS, nobody there: each has a hint of its own."""
    times = {"connect": 5.0, "greeting": 0.1, "command": 5.0, "body": 5.0, "idle": 5.0}
    began = time.monotonic()
    waits, _ = refused(SILENCE, timeouts_s=times)
    assert time.monotonic() - began < 3  # what connecting did not need is not the greeting's
    assert waits.text.endswith(" in time (greeting)")
    assert 'tls = "implicit"' in str(waits.hint)
    hangs_up, _ = refused()
    web, _ = refused(b"HTTP/1.1 400 Bad\tRequest\r\n", SILENCE)
    assert 'tls = "implicit"' in str(hangs_up.hint)
    assert web.text.endswith(" does not speak SMTP: HTTP/1.1 400 Bad Request")
    assert "another service" in str(web.hint)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for host, hint, code in (("127.0.0.1", "firewall", "relay_unreachable"), ("x.invalid", "DNS", "relay_unreachable")):
        found = run(check(Endpoint.from_map(Relay.model_validate({"host": host, "port": port}).to_map())))
        assert hint in found["error"]["hint"]
        assert found["error"]["code"] == code


STARTTLS: list[Any] = [
    GREET,
    hear(b"EHLO"),
    b"250-relay.example.com\r\n250 STARTTLS\r\n",
    hear(b"STARTTLS"),
    b"220 go\r\n",
]
SECURE: list[Any] = [
    *STARTTLS,
    START_TLS,
    hear(b"EHLO"),
    b"250-relay.example.com\r\n250-AUTH PLAIN\r\n250 PIPELINING\r\n",
]


def test_features_are_those_announced_after_tls(certificate: Certificate) -> None:
    """What was said before TLS is not believed (RFC 3207 4.2)."""
    session, _ = opened([*SECURE, SILENCE], context=certificate.context, tls="required", ca_file=str(certificate.file))
    assert session.tls is not None
    assert session.features == Features(pipelining=True, auth=("plain",))


def test_bytes_injected_before_tls_are_dropped(certificate: Certificate) -> None:
    """A reply smuggled in behind the 220 in the clear does not answer the EHLO under TLS."""
    injected = [*SECURE]
    injected[4] = b"220 go\r\n250-evil.example.com\r\n250 CHUNKING\r\n"
    session, _ = opened(
        [*injected, SILENCE], context=certificate.context, tls="required", ca_file=str(certificate.file)
    )
    assert session.features == Features(pipelining=True, auth=("plain",))


def test_bytes_injected_one_by_one_before_tls_spoil_the_handshake_only(certificate: Certificate) -> None:
    """In a segment of their own they come where TLS should: no session, and nothing of them is believed."""
    injected = [*STARTTLS, hear(b""), b"250 evil.example.com\r\n", SILENCE]
    error, heard = refused(*injected, context=certificate.context, tls="required", ca_file=str(certificate.file))
    assert (error.stage, error.reply) == (Stage.TLS, None)
    assert "TLS with 127.0.0.1:" in error.text
    assert [line for line in heard if line.startswith((b"EHLO", b"STARTTLS"))] == [b"EHLO me.example.com", b"STARTTLS"]


def test_required_tls_that_is_not_offered_is_an_error() -> None:
    """A relay (or an attacker) that hides STARTTLS gets no mail."""
    error, heard = refused(*HELLO, SILENCE, tls="required")
    assert (error.stage, error.blames) == (Stage.TLS, "sender")
    assert "offers no STARTTLS" in error.text
    assert heard == [b"EHLO me.example.com"]


def test_opportunistic_tls_that_breaks_is_done_without() -> None:
    """A broken handshake costs a second connection, in the clear; with a password to protect it is an error."""
    broken = [*STARTTLS, SOMETHING, b"this is no TLS\r\n", SILENCE]
    session, server = opened(broken, [*HELLO, SILENCE], tls="opportunistic")
    assert session.tls is None
    assert server.connections == 2
    error, _ = refused(*broken, tls="opportunistic", username="me", password="pw")
    assert error.stage is Stage.TLS


def test_a_password_never_goes_over_a_plain_line_unasked() -> None:
    """No TLS offered: with a password that is an error, unless the operator declared the line safe."""
    plain = [GREET, hear(b"EHLO"), b"250-relay.example.com\r\n250 AUTH PLAIN\r\n"]
    error, heard = refused(*plain, SILENCE, tls="opportunistic", username="me", password="pw")
    assert (error.stage, error.blames) == (Stage.AUTH, "sender")
    assert heard == [b"EHLO me.example.com"]
    login = [*plain, hear(b"AUTH PLAIN AG1lAHB3"), b"235 2.7.0 ok\r\n", SILENCE]
    assert opened(login, tls="none", username="me", password="pw")[0].features.auth == ("plain",)


def test_a_refused_login_is_not_tried_again_another_way(certificate: Certificate) -> None:
    """535 is an answer: trying the same password by LOGIN and CRAM-MD5 only helps to get locked out."""
    script = [*SECURE]
    script[-1] = b"250-relay.example.com\r\n250 AUTH PLAIN LOGIN CRAM-MD5\r\n"
    error, heard = refused(
        *script, hear(b"AUTH PLAIN"), b"535 5.7.8 no\r\n", SILENCE,
        context=certificate.context, tls="required", ca_file=str(certificate.file), username="me", password="pw",
    )  # fmt: skip
    assert (error.stage, error.blames) == (Stage.AUTH, "sender")
    assert sum(line.startswith(b"AUTH") for line in heard) == 1
    assert "refused the login of me: 535 5.7.8 no" in error.text
    assert "pw" not in error.text


def test_a_mechanism_the_relay_does_not_really_know_is_passed_over(certificate: Certificate) -> None:
    """504 to PLAIN: LOGIN is tried."""
    script = [*SECURE]
    script[-1] = b"250-relay.example.com\r\n250 AUTH PLAIN LOGIN\r\n"
    login = [
        hear(b"AUTH PLAIN"),
        b"504 5.7.4 no\r\n",
        hear(b"AUTH LOGIN"),
        b"334 UGFzc3dvcmQ6\r\n",
        hear(b""),
        b"235 ok\r\n",
    ]
    session, _ = opened(
        [*script, *login, SILENCE],
        context=certificate.context, tls="required", ca_file=str(certificate.file), username="me", password="pw",
    )  # fmt: skip
    assert session.features.auth == ("plain", "login")


class Listener(asyncio.Protocol):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.heard = b""
        self.made = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = True

    def data_received(self, data: bytes) -> None:
        self.heard += data


@pytest.mark.parametrize("tls", ["none", "required", "implicit"])
def test_the_transport_is_ours_after_the_hand_over(certificate: Certificate, tls: str) -> None:
    """Bytes go to our protocol from then on, in the clear, after STARTTLS and over implicit TLS."""
    opening = SECURE if tls == "required" else HELLO
    script: list[Any] = [*opening, hear(b"NOOP"), b"250 ours\r\n"]

    async def work() -> bytes:
        async with line_server(script, context=certificate.context, implicit=tls == "implicit") as server:
            session = await open_session(relay_to(server, tls=tls, ca_file=str(certificate.file)))
            listener = Listener()
            session.take_over(listener)
            assert listener.made
            endpoint = session.transport.get_extra_info("socket")
            assert endpoint.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            session.transport.write(b"NOOP\r\n")
            async with asyncio.timeout(10):
                while not listener.heard:
                    await asyncio.sleep(0.001)
            session.transport.abort()
            return listener.heard

    assert run(work()) == b"250 ours\r\n"


def test_a_relay_that_speaks_out_of_turn_is_not_taken_over() -> None:
    """A reply nobody asked for behind the EHLO reply: counting would be wrong from the first message on."""
    script: list[Any] = [GREET, hear(b"EHLO"), b"250 relay.example.com\r\n250 and more\r\n", SILENCE]

    async def work() -> str:
        async with line_server(script) as server:
            session = await open_session(relay_to(server))
            listener = Listener()
            with pytest.raises(SessionError) as caught:
                session.take_over(listener)
            assert not listener.made
            return caught.value.text

    assert run(work()) == "the relay spoke out of turn: b'250 and more\\r\\n'"


def test_a_relay_that_has_closed_is_not_taken_over() -> None:
    """Closed between EHLO and hand-over: an error now, not a lost message later."""

    async def work() -> str:
        async with line_server([*HELLO, hear(b"NOOP")]) as server:
            session = await open_session(relay_to(server))
            session.transport.write(b"NOOP\r\n")
            async with asyncio.timeout(10):
                while not session.transport.is_closing():
                    await asyncio.sleep(0.001)
            with pytest.raises(SessionError) as caught:
                session.take_over(Listener())
            return caught.value.text

    assert run(work()) == "the relay closed the connection before the first message"


def test_a_cancelled_opening_leaves_no_connection() -> None:
    """Cancelled while it waits, the attempt closes its socket."""

    async def work() -> None:
        async with line_server([SILENCE]) as server:
            attempt = asyncio.create_task(open_session(relay_to(server)))
            async with asyncio.timeout(10):
                while not server.connections:
                    await asyncio.sleep(0.001)
                attempt.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await attempt
                while len(asyncio.all_tasks()) > 1:  # the server's task ends when the client has gone
                    await asyncio.sleep(0.001)

    run(work())
