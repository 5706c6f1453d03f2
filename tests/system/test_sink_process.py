"""The rehearsal server as a process: its first line, its counts, its file, its options, its end."""

from __future__ import annotations

import json
import smtplib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from broker.contract.relay import Relay
from tests.fixtures.scripted_relay import Message
from tests.fixtures.smtp_client import send

if TYPE_CHECKING:  # pytest itself imports it, as a plugin
    from tests.fixtures.sink import RunningSink, StartSink

pytest_plugins = ["tests.fixtures.sink"]

ROOT = Path(__file__).resolve().parents[2]


def run_sink(*options: str) -> subprocess.CompletedProcess[str]:
    """A sink that is expected to end by itself."""
    command = [sys.executable, "-m", "actors.sink.actor", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def relay_at(sink: RunningSink) -> Relay:
    """Settings of a relay at the sink."""
    return Relay.model_validate({"name": "sink", "host": sink.host, "port": sink.port, "tls": "none"})


def message(number: int, rcpt: str) -> Message:
    """A message with a Message-ID of its own."""
    head = f"Message-ID: <{number}@example.com>\r\nSubject: {number}\r\n\r\n"
    return Message(rcpt=rcpt.encode(), body=head.encode() + b".dots\r\n..\r\nand \xc3\xa4\r\n")


@pytest.mark.parametrize("options", [(), ("--no-pipelining",), ("--latency", "5")], ids=["plain", "lockstep", "late"])
def test_what_we_sent_is_what_it_kept(sink: StartSink, options: tuple[str, ...]) -> None:
    """Envelopes and bytes of all messages, whatever its manners."""
    running = sink(*options, keep=True)
    messages = [message(n, f"user{n}@example.org") for n in range(20)]
    _, conversation = send(relay_at(running), messages)
    assert [c.event.value for c in conversation.concluded] == ["2xx"] * 20
    kept = running.messages()
    assert [(m["rcpt_to"], m["data"].encode("latin-1")) for m in kept] == [(m.rcpt.decode(), m.body) for m in messages]
    assert {m["mail_from"] for m in kept} == {"news@example.com"}
    assert running.stop()["messages"] == 20


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
    assert ended.stderr == f"error: cannot listen on 127.0.0.1:{running.port}: Address already in use\n"
    ended = run_sink("--port", str(running.port), "--json")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert json.loads(ended.stderr)["error"]["code"] == "sink_failed"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--defer", "2"), "a share between 0 and 1 is needed: 2"),
        (("--defer", "0.6", "--bounce", "0.6"), "at most 1"),
        (("--port", "99999"), "a port between 0 and 65535 is needed: 99999"),
        (("--latency", "-1"), "milliseconds between 0 and an hour are needed: -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: tuple[str, ...], said: str) -> None:
    """Status 2 and the reason."""
    ended = run_sink(*options)
    assert ended.returncode == 2
    assert said in ended.stderr


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """--keep below a file: one line, status 1."""
    (tmp_path / "file").write_text("")
    ended = run_sink("--port", "0", "--keep", str(tmp_path / "file" / "below"))
    assert ended.returncode == 1
    assert ended.stderr == f"error: cannot write {tmp_path}/file/below: Not a directory\n"


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
