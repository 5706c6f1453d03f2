"""Our session and transactions against real servers: Postfix's smtp-sink, and a private Postfix with TLS and AUTH."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from actors.smtp.outcome import Connection, decide
from actors.smtp.session import SessionError
from actors.smtp.transaction import Concluded, Mode, Stage
from broker.contract.relay import Relay
from shm.files.ledger import States
from tests.fixtures.scripted_relay import Message
from tests.fixtures.smtp_client import send

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.exim import RunningExim
    from tests.fixtures.postfix import RunningPostfix
    from tests.fixtures.smtp_sink import StartSmtpSink

pytest_plugins = ["tests.fixtures.postfix", "tests.fixtures.smtp_sink", "tests.fixtures.exim"]


def relay_of(host: str, port: int, **more: Any) -> Relay:
    """Settings of a relay as a table of ecm.toml would give them."""
    return Relay.model_validate({"name": "peer", "host": host, "port": port, "tls": "none", **more})


def message(name: str, *, rcpt: str = "anna@example.org", text: str = "Hello\r\n") -> Message:
    """A message whose Message-ID is `name`@example.com."""
    head = f"From: news@example.com\r\nTo: {rcpt}\r\nSubject: {name}\r\nMessage-ID: <{name}@example.com>\r\n\r\n"
    return Message(rcpt=rcpt.encode(), body=(head + text).encode())


def events(concluded: list[Concluded]) -> dict[int, tuple[str, str]]:
    """{number: (stage, event)}, each number once."""
    assert len({c.number for c in concluded}) == len(concluded)
    return {c.number: (c.stage.name, c.event.value) for c in concluded}


DOTTED = ".\r\n..\r\n.hidden\r\nseen.\r\n" + "x" * 200 + "\r\n.\r\n"


@pytest.mark.parametrize("options", [(), ("-p",)], ids=["pipelining", "lockstep"])
def test_smtp_sink_keeps_every_message_as_it_was(smtp_sink: StartSmtpSink, options: tuple[str, ...]) -> None:
    """A hundred messages over one connection arrive under their own envelopes, dots and all."""
    peer = smtp_sink(*options)
    messages = [message(f"m{n}", rcpt=f"user{n}@example.org", text=DOTTED) for n in range(100)]
    session, conversation = send(relay_of(peer.host, peer.port), messages)
    assert session.mode is (Mode.LOCKSTEP if options else Mode.PIPELINING)
    assert set(events(conversation.concluded).values()) == {("BODY", "2xx")}
    kept = {one.rcpt: one.data for one in peer.messages()}
    assert kept == {f"<{m.rcpt.decode()}>": m.body.replace(b"\r\n", b"\n") for m in messages}


@pytest.mark.parametrize(
    ("options", "stage", "event", "state"),
    [
        (("-Q", "MAIL"), "MAIL", "421", States.DEFERRED),
        (("-Q", "RCPT"), "RCPT", "421", States.DEFERRED),
        (("-Q", "DATA"), "DATA", "421", States.DEFERRED),
        (("-Q", "."), "BODY", "421", States.DEFERRED),
        (("-q", "MAIL"), "MAIL", "lost_before", States.DEFERRED),
        (("-q", "DATA"), "DATA", "lost_before", States.DEFERRED),
        (("-q", "."), "BODY", "lost_after", States.UNCERTAIN),
        (("-r", "MAIL"), "MAIL", "4xx", States.DEFERRED),
        (("-r", "RCPT"), "RCPT", "4xx", States.DEFERRED),
        (("-f", "RCPT"), "RCPT", "5xx", States.BOUNCED),
        (("-f", "."), "BODY", "5xx", States.BOUNCED),
    ],
    ids=lambda part: "".join(part) if isinstance(part, tuple) else None,
)
def test_smtp_sink_misbehaving_is_judged_by_stage(
    smtp_sink: StartSmtpSink, options: tuple[str, ...], stage: str, event: str, state: States
) -> None:
    """Refusals, goodbyes and silent ends of a real server at every stage: only a lost body is uncertain."""
    peer = smtp_sink(*options)
    _, conversation = send(relay_of(peer.host, peer.port), [message("one"), message("two")])
    first = conversation.concluded[0]
    assert (first.number, first.stage.name, first.event.value) == (1, stage, event)
    assert decide(first).state is state


def test_smtp_sink_refusing_before_the_dot_leaves_nothing_uncertain(smtp_sink: StartSmtpSink) -> None:
    """550 right after 354, the body half way: refused it is, and the connection ends."""
    peer = smtp_sink("-A", "0")
    _, conversation = send(relay_of(peer.host, peer.port), [message("one")])
    (only,) = conversation.concluded
    assert (only.stage.name, only.event.value) == ("BODY", "5xx")


@pytest.mark.parametrize("ceiling", list(Mode), ids=lambda mode: mode.name.lower())
def test_postfix_takes_what_it_does_not_refuse(postfix: RunningPostfix, ceiling: Mode) -> None:
    """Deferred, bounced and accepted recipients in one stream: each gets its own reply, each message is queued once."""
    before = len(postfix.accepted(count=0))
    kinds = ["anna", "defer", "anna", "bounce", "bounce", "defer", "anna", "anna"] * 5
    messages = [message(f"{ceiling.name}-{n}", rcpt=f"{kind}@example.com") for n, kind in enumerate(kinds, 1)]
    _, conversation = send(relay_of(postfix.host, postfix.port), messages, ceiling=ceiling)
    expected = {"anna": ("BODY", "2xx"), "defer": ("RCPT", "4xx"), "bounce": ("RCPT", "5xx")}
    assert events(conversation.concluded) == {n: expected[kind] for n, kind in enumerate(kinds, 1)}
    sent = [f"{ceiling.name}-{n}@example.com" for n, kind in enumerate(kinds, 1) if kind == "anna"]
    assert postfix.accepted(count=before + len(sent))[before:] == sent


def test_postfix_closing_with_421_ends_the_stream_in_order(postfix: RunningPostfix) -> None:
    """421 to a recipient: deferred, the connection is over, what was accepted before it stays accepted."""
    messages = [message("a"), message("b", rcpt="drop@example.com"), message("c")]
    for ceiling, rest in (Mode.PIPELINING, {}), (Mode.BDAT, {3: ("MAIL", "lost_before")}):
        _, conversation = send(relay_of(postfix.host, postfix.port), messages, ceiling=ceiling)
        found = events(conversation.concluded)
        assert found == {1: ("BODY", "2xx"), 2: ("RCPT", "421"), **rest}
        assert decide(conversation.concluded[1]).action is Connection.CLOSE


@pytest.mark.parametrize("ceiling", [Mode.PIPELINING, Mode.BDAT], ids=["groups", "windows"])
def test_postfix_that_forbids_unauthorised_pipelining_takes_ours(postfix: RunningPostfix, ceiling: Mode) -> None:
    """The default of Postfix 3.9: `body . MAIL RCPT DATA`, and whole windows of BDAT, are authorised pipelining."""
    messages = [message(f"strict-{n}") for n in range(30)]
    _, conversation = send(relay_of(postfix.host, postfix.strict_port), messages, ceiling=ceiling)
    assert set(events(conversation.concluded).values()) == {("BODY", "2xx")}


@pytest.mark.parametrize("tls", ["opportunistic", "required", "implicit"])
def test_postfix_over_tls_and_logged_in(postfix: RunningPostfix, tls: str) -> None:
    """Each way into TLS, the certificate verified, a login, and a stream through the transport we took over."""
    port = postfix.tls_port if tls == "implicit" else postfix.port
    relay = relay_of(
        postfix.host, port, tls=tls, ca_file=str(postfix.ca_file), username=postfix.username, password=postfix.password
    )
    session, conversation = send(relay, [message(f"{tls}-{n}", text=DOTTED * 20) for n in range(30)])
    assert session.tls is not None
    assert session.tls.version == "TLSv1.3"
    assert session.mode is Mode.BDAT
    assert session.features.size == 10_240_000
    assert set(events(conversation.concluded).values()) == {("BODY", "2xx")}


@pytest.mark.parametrize("tls", ["required", "implicit"])
def test_postfix_takes_a_session_up_again(postfix: RunningPostfix, tls: str) -> None:
    """Three connections, one whole handshake: the ticket of the first shortens the others, and mail goes over them."""
    port = postfix.tls_port if tls == "implicit" else postfix.port
    host = "localhost"  # no other test's sessions are taken up under this name
    relay = relay_of(host, port, tls=tls, ca_file=str(postfix.ca_file))
    resumed = []
    for name in ("first", "second", "third"):
        session, conversation = send(relay, [message(name)])
        assert events(conversation.concluded) == {1: ("BODY", "2xx")}
        assert session.tls is not None
        resumed.append(session.tls.resumed)
    assert resumed == [False, True, True]


@pytest.mark.parametrize("mechanism", ["plain", "login", "cram-md5"])
@pytest.mark.parametrize("tls", ["required", "none"])
def test_postfix_is_logged_in_to_by_each_mechanism(postfix: RunningPostfix, mechanism: str, tls: str) -> None:
    """PLAIN comes first over TLS, CRAM-MD5 first without; where a server has one mechanism alone, by that."""
    port = {"plain": postfix.port, "login": postfix.login_port, "cram-md5": postfix.cram_port}[mechanism]
    login = {"username": postfix.username, "password": postfix.password}
    session, conversation = send(
        relay_of(postfix.host, port, tls=tls, ca_file=str(postfix.ca_file), **login), [message("in")]
    )
    assert session.login == ("cram-md5" if (mechanism, tls) == ("plain", "none") else mechanism)
    assert events(conversation.concluded) == {1: ("BODY", "2xx")}


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_postfix_is_reached_over_ipv6_too(postfix: RunningPostfix, host: str) -> None:
    """By a literal, its certificate valid for it, and by a name that may have both families."""
    relay = relay_of(host, postfix.port, tls="required", ca_file=str(postfix.ca_file))
    session, conversation = send(relay, [message("six")])
    assert session.tls is not None
    assert session.tls.verified
    assert events(conversation.concluded) == {1: ("BODY", "2xx")}


def test_exim_takes_nothing_under_the_wrong_sender(exim: RunningExim) -> None:
    """A refused recipient in mid-window leaves Exim's transaction open; the next message keeps its own sender.

    Every message has a sender of its own; Exim's log says which it took each for. (Ten refused recipients are what
    Exim puts up with on one connection that resets.)
    """
    kinds = ["anna", "bounce", "berta", "defer", "carla", "bounce", "bounce", "dora"] * 2
    messages = [
        Message(f"from-{n}@example.com".encode(), f"{kind}@d{n}.example.org".encode(), message(f"exim-{n}").body)
        for n, kind in enumerate(kinds)
    ]
    before = len(exim.accepted(count=0))
    session, conversation = send(relay_of(exim.host, exim.port), messages, window=16)
    assert session.mode is Mode.BDAT
    refused = {"defer": ("RCPT", "4xx"), "bounce": ("RCPT", "5xx")}
    expected = {n: refused.get(kind, ("BODY", "2xx")) for n, kind in enumerate(kinds, 1)}
    assert events(conversation.concluded) == expected
    sent = [
        (f"from-{n}@example.com", f"{kind}@d{n}.example.org", f"exim-{n}@example.com")
        for n, kind in enumerate(kinds)
        if kind not in refused
    ]
    assert exim.accepted(count=before + len(sent))[before:] == sent


@pytest.mark.parametrize("tls", ["required", "implicit"])
def test_a_certificate_nobody_vouches_for_is_refused(postfix: RunningPostfix, tls: str) -> None:
    """Without `ca_file` the private certificate is unknown: no session, and the reason in one line."""
    port = postfix.tls_port if tls == "implicit" else postfix.port
    with pytest.raises(SessionError) as caught:
        send(relay_of(postfix.host, port, tls=tls), [message("never")])
    assert caught.value.stage is Stage.TLS
    assert caught.value.text == f"the certificate of 127.0.0.1:{port} is not valid: self-signed certificate"


def test_opportunistic_tls_asks_for_no_certificate(postfix: RunningPostfix) -> None:
    """Encryption without authentication is better than none (RFC 7435)."""
    session, conversation = send(relay_of(postfix.host, postfix.port, tls="opportunistic"), [message("mild")])
    assert session.tls is not None
    assert events(conversation.concluded) == {1: ("BODY", "2xx")}


def test_bad_credentials_blame_us_and_nobody_else(postfix: RunningPostfix) -> None:
    """535 at AUTH: a session error of class sender with the relay's own words; no recipient was in flight."""
    relay = relay_of(
        postfix.host,
        postfix.port,
        tls="required",
        ca_file=str(postfix.ca_file),
        username=postfix.username,
        password="no",
    )
    with pytest.raises(SessionError) as caught:
        send(relay, [message("never")])
    error = caught.value
    assert (error.stage, error.blames) == (Stage.AUTH, "sender")
    assert error.reply is not None
    assert error.reply.code == 535
    assert "refused the login of user@example.com: 535 5.7.8" in error.text
    assert "secret" not in str(error)


def check(relay: Relay) -> dict[str, Any]:
    """What `python -m actors.smtp.check` finds out about a relay."""
    ended = subprocess.run(
        [sys.executable, "-m", "actors.smtp.check"],
        cwd=Path(__file__).resolve().parents[2],
        input=json.dumps(relay.to_map()),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stderr == ""
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_a_relay_can_be_tried_out_without_a_message(postfix: RunningPostfix) -> None:
    """`actors.smtp.check` logs in, says goodbye, and tells what the relay offers."""
    relay = relay_of(
        postfix.host,
        postfix.port,
        tls="required",
        ca_file=str(postfix.ca_file),
        username=postfix.username,
        password="secret",
    )
    found = check(relay)
    assert found["ok"]
    assert found["tls"].startswith("TLSv1.3")
    assert (found["mode"], found["window"]) == ("bdat", 16)
    assert (found["login"], found["logged_in"], found["features"]["size"]) == ("plain", True, 10_240_000)
    assert found["certificate"]["verified"]
    assert found["certificate"]["valid_until"].endswith("Z")
    assert 0 < found["round_trip_ms"] < found["open_ms"]


def test_a_certificate_nobody_asks_for_is_looked_at_all_the_same(postfix: RunningPostfix) -> None:
    """With opportunistic TLS the check says what would come of `tls = "required"`."""
    mild = {"tls": "opportunistic"}
    found = check(relay_of(postfix.host, postfix.port, **mild))
    assert found["certificate"] == {
        "verified": False,
        "valid_until": None,
        "problem": f"the certificate of 127.0.0.1:{postfix.port} is not valid: self-signed certificate",
    }
    found = check(relay_of(postfix.host, postfix.port, ca_file=str(postfix.ca_file), **mild))
    assert (found["certificate"]["verified"], found["certificate"]["problem"]) == (False, None)
    assert found["certificate"]["valid_until"].endswith("Z")
    assert check(relay_of(postfix.host, postfix.port, tls="none"))["certificate"] is None


def test_a_relay_that_cannot_be_used_is_told_with_its_reason(postfix: RunningPostfix) -> None:
    """Refused or unreachable, as an error for the operator; the password stays out of it."""
    relay = relay_of(
        postfix.host,
        postfix.port,
        tls="required",
        ca_file=str(postfix.ca_file),
        username="user@example.com",
        password="wrong",
    )
    found = check(relay)
    assert (found["ok"], found["error"]["code"]) == (False, "relay_refused")
    assert found["error"]["message"].startswith("relay `peer`: ")
    assert "535 5.7.8" in found["error"]["message"]
    assert "wrong" not in json.dumps(found)
    assert check(relay_of("nowhere.invalid", 25))["error"]["code"] == "relay_unreachable"
