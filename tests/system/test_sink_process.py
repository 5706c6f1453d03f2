"""The rehearsal server as a process: its first line, its counts, its file, its options, its end."""

from __future__ import annotations

import json
import os
import re
import smtplib
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from actors.smtp.transaction import Mode
from broker.contract.relay import Relay
from tests.fixtures.scripted_relay import Message
from tests.fixtures.smtp_client import send
from tests.fixtures.until import until

if TYPE_CHECKING:  # pytest itself imports it, as a plugin
    from tests.fixtures.certificate import Certificate
    from tests.fixtures.sink import RunningSink, StartSink

pytest_plugins = ["tests.fixtures.certificate", "tests.fixtures.sink"]

ROOT = Path(__file__).resolve().parents[2]


def run_sink(*options: str) -> subprocess.CompletedProcess[str]:
    """A sink that is expected to end by itself."""
    command = [sys.executable, "-m", "actors.sink.actor", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def relay_at(sink: RunningSink, **more: object) -> Relay:
    """Settings of a relay at the sink."""
    return Relay.model_validate({"name": "sink", "host": sink.host, "port": sink.port, "tls": "none"} | more)


def message(number: int, rcpt: str) -> Message:
    """A message with a Message-ID of its own."""
    head = f"Message-ID: <{number}@example.com>\r\nSubject: {number}\r\n\r\n"
    return Message(rcpt=rcpt.encode(), body=head.encode() + b".dots\r\n..\r\nand \xc3\xa4\r\n")


@pytest.mark.parametrize("ceiling", list(Mode))
@pytest.mark.parametrize(
    "options",
    [(), ("--no-chunking",), ("--no-pipelining",), ("--latency", "5", "--jitter", "5"), ("--rate", "400")],
    ids=["plain", "pipelining", "lockstep", "late", "slow"],
)
def test_what_we_sent_is_what_it_kept(sink: StartSink, options: tuple[str, ...], ceiling: Mode) -> None:
    """Envelopes and bytes of all messages, whatever its manners and ours."""
    running = sink(*options, keep=True)
    messages = [message(n, f"user{n}@example.org") for n in range(20)]
    _, conversation = send(relay_at(running), messages, ceiling=ceiling)
    assert [c.event.value for c in conversation.concluded] == ["2xx"] * 20
    kept = running.messages()
    assert [(m["rcpt_to"], m["data"].encode("latin-1")) for m in kept] == [(m.rcpt.decode(), m.body) for m in messages]
    assert {m["mail_from"] for m in kept} == {"news@example.com"}
    counts = running.stop()
    assert (counts["messages"], counts["by_data"] + counts["by_bdat"], counts["duplicates"]) == (20, 20, 0)
    sizes = [len(m.body) for m in messages]  # told to 16 bytes, and after DATA with the dots that were doubled
    assert (counts["size_least"], counts["size_greatest"]) == pytest.approx((min(sizes), max(sizes)), abs=16)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("made", [True, False], ids=["certificate made", "certificate given"])
def test_it_encrypts_and_asks_for_a_password(
    sink: StartSink, tls: str, made: bool, tmp_path: Path, certificate: Certificate
) -> None:
    """Our session logs in and delivers; the certificate that was given is the one that is shown."""
    (tmp_path / "pw").write_text("geheim\n")
    given = () if made else ("--cert", str(certificate.file), "--key", str(certificate.file.with_name("key.pem")))
    running = sink("--tls", tls, "--user", "me", "--password-file", str(tmp_path / "pw"), *given, keep=True)
    mode = {"tls": "implicit" if tls == "implicit" else "required"}
    if made:  # nobody knows it: it is taken unseen, as a client that does not look would
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client = smtplib.SMTP_SSL if tls == "implicit" else smtplib.SMTP
        with client(running.host, running.port, **({"context": context} if tls == "implicit" else {})) as smtp:
            if tls == "starttls":
                smtp.starttls(context=context)
            with pytest.raises(smtplib.SMTPSenderRefused, match="530"):
                smtp.sendmail("a@example.com", ["b@example.com"], "Hi\r\n")
            with pytest.raises(smtplib.SMTPAuthenticationError):
                smtp.login("me", "falsch")
            smtp.login("me", "geheim")
            smtp.sendmail("a@example.com", ["b@example.com"], "Hi\r\n")
        accepted = 1
    else:
        ours = relay_at(running, ca_file=str(certificate.file), username="me", password="geheim", **mode)
        _, conversation = send(ours, [message(n, f"user{n}@example.org") for n in range(20)])
        assert [c.event.value for c in conversation.concluded] == ["2xx"] * 20
        accepted = 20
    counts = running.stop()
    assert (counts["messages"], counts["tls_sessions"], counts["logins"]) == (accepted, 1, 1)
    assert counts["logins_refused"] == 2 * made  # smtplib tries PLAIN, then LOGIN


def test_a_handshake_that_fails_leaves_no_session(sink: StartSink) -> None:
    """A client that speaks no TLS after STARTTLS is gone, and the next is served."""
    running = sink("--tls", "starttls")
    with socket.create_connection((running.host, running.port), 10) as wire, wire.makefile("rb") as said:
        said.readline()
        wire.sendall(b"STARTTLS\r\n")
        assert said.readline().startswith(b"220 ")
        wire.sendall(b"EHLO me\r\nEHLO me\r\n")
        said.read()
    until(lambda: running.counts()["sessions_open"] == 0)
    with smtplib.SMTP(running.host, running.port) as client:
        assert client.ehlo()[0] == 250
        assert client.has_extn("starttls")
    assert running.stop()["tls_sessions"] == 0


def test_a_capacity_has_a_best_number_of_connections(sink: StartSink) -> None:
    """400 a second at 4 connections; at 16 a quarter of it."""
    running = sink("--rate", "400", "--best-connections", "4")

    def per_second(connections: int, each: int) -> float:
        relay = relay_at(running)
        with ThreadPoolExecutor(connections) as pool:
            messages = [message(n, f"user{n}@example.org") for n in range(each)]
            ended = list(pool.map(lambda _: send(relay, messages)[1], range(connections)))
        took_s = max(one.ended_s for one in ended) - min(one.began_s for one in ended)
        return connections * each / took_s

    assert per_second(4, 100) == pytest.approx(400, rel=0.15)
    assert per_second(16, 12) == pytest.approx(100, rel=0.3)  # the last ones find it less crowded


def test_it_closes_after_so_many_messages_and_nothing_is_lost(sink: StartSink) -> None:
    """The replies before the end are all read, though the client had written more; the rest is lost, not refused."""
    running = sink("--close-after", "7")
    _, conversation = send(relay_at(running), [message(n, f"user{n}@example.org") for n in range(20)])
    events = [c.event.value for c in conversation.concluded]
    assert events[:7] == ["2xx"] * 7
    assert len(events) == 20
    assert not {"2xx", "4xx", "5xx"} & set(events[7:])
    assert running.stop()["messages"] == 7


def test_greylisting_takes_them_later(sink: StartSink) -> None:
    """450 4.2.0 at first; when the time has passed they are accepted."""
    running = sink("--greylist", "1")
    messages = [message(n, f"user{n}@example.org") for n in range(5)]
    _, first = send(relay_at(running), messages)
    assert {str(c.reply and c.reply.code) for c in first.concluded} == {"450"}
    until(lambda: {c.event.value for c in send(relay_at(running), messages)[1].concluded} == {"2xx"})
    assert running.stop()["duplicates"] == 0


def test_chance_and_magic_are_told_in_the_counts(sink: StartSink) -> None:
    """Deferred ones come through the second time; the counts add up."""
    running = sink("--defer", "0.3", "--bounce", "0.2", "--seed", "7")
    messages = [message(n, f"user{n}@example.org") for n in range(100)]
    _, first = send(relay_at(running), messages)
    later = [messages[c.number - 1] for c in first.concluded if c.event == "4xx"]
    _, second = send(relay_at(running), later)
    assert {c.event.value for c in second.concluded} == {"2xx"}
    counts = running.counts()
    assert counts["deferred"] == len(later) > 0
    assert counts["messages"] + counts["bounced"] == 100
    assert counts["bounced"] > 0
    assert (counts["sessions"], counts["duplicates"]) == (2, 0)
    send(relay_at(running), later[:1])
    assert running.stop()["duplicates"] == 1


def test_it_talks_with_another_client_too(sink: StartSink) -> None:
    """The standard library's client delivers to several recipients at once."""
    running = sink(keep=True)
    with smtplib.SMTP(running.host, running.port) as client:
        refused = client.sendmail("a@example.com", ["b@example.com", "bounce@example.com", "c@example.com"], "Hi\r\n")
    assert list(refused) == ["bounce@example.com"]
    assert [m["rcpt_to"] for m in running.messages()] == ["b@example.com", "c@example.com"]


def test_it_is_called_by_its_title(sink: StartSink) -> None:
    """`ps` shows what it is."""
    assert psutil.Process(sink().pid).cmdline()[0].startswith("email-campaign: sink")


def test_it_ends_after_the_messages_it_was_asked_for(sink: StartSink) -> None:
    """--max-messages: counts and exit by itself."""
    running = sink("--max-messages", "3")
    send(relay_at(running), [message(n, f"user{n}@example.org") for n in range(3)])
    assert running.ended()["messages"] == 3


def test_a_port_in_use_is_one_clear_line_and_status_1(sink: StartSink) -> None:
    """No traceback, nothing on stdout; as JSON where JSON was asked for."""
    running = sink()
    ended = run_sink("--port", str(running.port))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines() == [
        f"error: cannot listen on 127.0.0.1:{running.port}: Address already in use",
        "hint: something listens there already: choose another --port, 0 takes any free one",
    ]
    ended = run_sink("--port", str(running.port), "--json")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert json.loads(ended.stderr)["error"]["code"] == "sink_failed"


def test_an_address_of_ipv6_is_written_in_brackets() -> None:
    """In the first line, and where it cannot listen."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        ended = run_sink("--host", "::1", "--port", str(port))
        assert ended.stderr.startswith(f"error: cannot listen on [::1]:{port}: Address already in use\n")
    command = [sys.executable, "-m", "actors.sink.actor", "--host", "::1", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.terminate()
    assert re.fullmatch(r"listening on \[::1\]:\d+\n", first)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--throttle", "0.6", "--drop", "0.6"), "at most 1"),
        (("--user", "me"), "--user and --password-file belong together"),
        (("--cert", "x", "--key", "x"), "--cert is for --tls starttls or implicit"),
        (("--best-connections", "4"), "--best-connections belongs to --rate"),
        (("--rate", "0"), "messages a second, more than 0, are needed: 0"),
        (("--size", "0"), "a count from 1 is needed: 0"),
        (("--greylist", "100000"), "seconds between 0 and a day are needed: 100000"),
        (("--defer", "2"), "a share between 0 and 1 is needed: 2"),
        (("--defer", "0.6", "--bounce", "0.6"), "at most 1"),
        (("--port", "99999"), "a port between 0 and 65535 is needed: 99999"),
        (("--latency", "-1"), "milliseconds between 0 and an hour are needed: -1"),
        (("--defer", "nan"), "--defer: a share between 0 and 1 is needed: nan"),
        (("--rate", "inf"), "--rate: messages a second, more than 0, are needed: inf"),
        (("--rate", "many"), "--rate: messages a second, more than 0, are needed: many"),
        (("--cert", "x"), "--cert and --key belong together"),
        (("--keep-first", "3"), "--keep-first belongs to --keep"),
        (("--keep-first", "-1", "--keep", "x"), "--keep-first: a count from 0 is needed: -1"),
        (("--nothing",), "unrecognized arguments: --nothing"),
    ],
)
@pytest.mark.parametrize("module", ["actors.sink.actor", "ctl.main"])
def test_options_that_make_no_sense_are_refused(module: str, options: tuple[str, ...], said: str) -> None:
    """Status 2, the reason in a line and a way out, as from every command; as JSON where JSON was asked for."""
    sink = [sys.executable, "-m", module, *(["sink"] if module == "ctl.main" else [])]
    ended = subprocess.run([*sink, *options], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    error, hint = ended.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    if module == "ctl.main":  # which finds some of it by itself, in its own words
        return
    assert said in error
    ended = run_sink(*options, "--json")
    assert (ended.returncode, json.loads(ended.stderr)["error"]["code"]) == (2, "invalid_value")
    assert said in json.loads(ended.stderr)["error"]["message"]


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """--keep below a file: one line, status 1."""
    (tmp_path / "file").write_text("")
    ended = run_sink("--port", "0", "--keep", str(tmp_path / "file" / "below"))
    assert ended.returncode == 1
    assert ended.stderr == f"error: cannot write {tmp_path}/file/below: Not a directory\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--user", "me", "--password-file", "nowhere"), "error: cannot read nowhere: No such file or directory\n"),
        (("--tls", "starttls", "--cert", "nowhere", "--key", "nowhere"), "error: cannot read nowhere or nowhere: "),
        (
            ("--tls", "implicit", "--cert", "README.md", "--key", "README.md"),
            "error: not a certificate and its key: README.md, README.md: nothing in PEM is there\nhint: --cert takes ",
        ),
    ],
)
def test_files_that_cannot_be_used_are_told(options: tuple[str, ...], said: str) -> None:
    """One line and perhaps a hint, status 1."""
    ended = run_sink("--port", "0", *options)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(said)
    assert ended.stderr.count("\n") == said.count("\n") + (not said.endswith("\n"))


def test_without_openssl_it_says_what_would_do(tmp_path: Path) -> None:
    """A certificate cannot be made: the way out is named."""
    command = [sys.executable, "-m", "actors.sink.actor", "--port", "0", "--tls", "starttls"]
    bare = {name: value for name, value in os.environ.items() if name != "PATH"} | {"PATH": str(tmp_path)}
    ended = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "error: no openssl to make a certificate with",
        "hint: install it, or give --cert and --key",
    ]


def test_a_full_disk_ends_it_with_the_reason(sink: StartSink, tmp_path: Path) -> None:
    """A file on a full disk: the first flush fails, the sink ends and says so."""
    (tmp_path / "sink-1").mkdir()
    (tmp_path / "sink-1" / "messages.ndjson").symlink_to("/dev/full")
    running = sink(keep=True)
    send(relay_at(running), [message(1, "anna@example.org")])
    running.ended()
    assert running.status == 1


def test_only_the_first_messages_are_kept_and_all_are_counted(sink: StartSink) -> None:
    """--keep-first bounds the file, not the score."""
    relay = sink("--keep-first", "2", keep=True)
    with smtplib.SMTP(relay.host, relay.port) as client:
        for number in range(4):
            client.sendmail("a@example.com", f"b{number}@example.com", f"Subject: {number}\r\n\r\nhello\r\n")
    assert relay.stop()["messages"] == 4
    assert [message["rcpt_to"] for message in relay.messages()] == ["b0@example.com", "b1@example.com"]
