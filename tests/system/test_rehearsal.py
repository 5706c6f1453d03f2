"""`ctl send --rehearse`: what it tells, that nobody real is reached, that nothing of it is left, however it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fixtures.ctl import environment, run_ctl
from tests.fixtures.stage import SHARED_MEMORY, processes_of, segments_of
from tests.fixtures.until import until

if TYPE_CHECKING:  # pytest itself imports it, as a plugin
    from tests.fixtures.engine import StartEngine

pytest_plugins = ["tests.fixtures.engine"]

CAMPAIGN = """\
name = "news"
subject = "Hello {{{{ first_name }}}}"
from = "News <news@example.com>"
text = "message.txt"
{audience}
relay = "main"
[unsubscribe]
mailto = "unsubscribe@example.com"
{more}
"""
SETTINGS = """\
[relay.one]
host = "127.0.0.1"
port = {port}
tls = "none"
from_domains = ["example.com"]
rate = {{ per_minute = 60 }}
[relay.two]
host = "127.0.0.1"
port = {port}
tls = "required"
username = "me"
password_file = "pw"
[pool.main]
one = 1
two = 1
"""


@pytest.fixture
def real_relay() -> Iterator[socket.socket]:
    """Where the real relays would be: nobody may connect."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.fixture
def place(tmp_path: Path, real_relay: socket.socket) -> Path:
    """A directory with settings and a campaign."""
    (tmp_path / "ecm.toml").write_text(SETTINGS.format(port=real_relay.getsockname()[1]))
    (tmp_path / "pw").write_text("secret\n")
    (tmp_path / "message.txt").write_text("Dear {{ first_name }},\n\nhello.\n")
    write_campaign(tmp_path)
    write_recipients(tmp_path, 300)
    return tmp_path


def write_campaign(place: Path, audience: str = 'recipients = "recipients.csv"', more: str = "") -> None:
    (place / "campaign.toml").write_text(CAMPAIGN.format(audience=audience, more=more))


def write_recipients(place: Path, rows: int, *more: str) -> None:
    addresses = [*(f"reader-{n}@example.com" for n in range(rows)), *more]
    (place / "recipients.csv").write_text("email,first_name\n" + "".join(f"{one},Anna\n" for one in addresses))


def rehearsed(place: Path, *options: str) -> dict[str, Any]:
    """The document of a rehearsal that came to its end."""
    found: dict[str, Any] = run_ctl("send", "campaign.toml", "--rehearse", "--json", *options, cwd=place).ok().json()
    return found


def begin(place: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A rehearsal of a large campaign that has started its engine, and its directory."""
    write_recipients(place, 200_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "ctl.main", "send", "campaign.toml", "--rehearse", "--latency", "200", *options],
        cwd=place, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    return process, read_until(process, "an engine in")


def read_until(process: subprocess.Popen[str], moment: str) -> str:
    """Wait for a line of talk; returns the directory if the line names it."""
    assert process.stderr is not None
    text = ""
    while moment not in text:
        line = process.stderr.readline()
        assert line, f"it ended without saying `{moment}`: {text}"
        text += line
    found = re.search(r"an engine in (/tmp/ecm-rehearsal-[^\s,]+)", text)
    return found[1] if found else ""


def test_a_rehearsal_tells_what_will_happen(place: Path) -> None:
    """Rate, time, the limit that binds, sizes, who fails and why, rejects, duplicates, messages; one document."""
    more = ("bounce@example.com", "full-once@example.com", "no address", "reader-1@example.com", "data-554@example.com")
    write_recipients(place, 300, *more)
    found = rehearsed(place, "--keep", "kept")
    campaign = found["campaign"]
    assert (campaign["state"], campaign["sent"], campaign["bounced"]) == ("finished", 301, 2)
    assert (campaign["rejected"], campaign["duplicates"], campaign["suppressed"]) == (1, 1, 0)
    assert found["relay"]["messages"] == 301
    assert found["relay"]["full"] == 1
    assert found["per_second"] > 0
    # Half of 303 people through relay `one`, which takes 60 in any minute.
    assert found["limit"] == "relay.one.rate.per_minute = 60"
    assert found["time_s"]["limits"] == found["time_s"]["least"] == 120.0
    sizes = found["size_bytes"]
    assert 0 < sizes["least"] <= sizes["median"] <= sizes["greatest"] < 5000
    assert [(row["email"], row["state"], row["code"]) for row in found["failing"]] == [
        ("bounce@example.com", "bounced", 550),
        ("data-554@example.com", "bounced", 554),
    ]
    assert [(one["email"], one["people"]) for one in found["kinds"]] == [
        ("bounce@example.com", 1),
        ("data-554@example.com", 1),
    ]
    assert [row["line"] for row in found["rejects"]] == [304]
    assert found["rejects"][0]["row"].startswith("no address")
    assert found["errors"] == []
    assert found["kept"] == str(place / "kept")
    assert len(found["messages"]) == 3
    for path in found["messages"]:
        message = message_from_bytes(Path(path).read_bytes())
        assert message["Subject"] == "Hello Anna"
        assert "reader-" in message["To"]
    assert (place / "kept" / "rejects.csv").read_text().count("\n") == 2
    assert sorted(path.name for path in place.iterdir()) == [
        "campaign.toml", "ecm.toml", "kept", "message.txt", "pw", "recipients.csv",
    ]  # fmt: skip


def test_a_person_reads_it_in_lines(place: Path) -> None:
    """The numbers one would regret not to know; the limits were off, and what they cost is told."""
    write_campaign(place, more="[rate]\nper_second = 10\nburst = 1")
    write_recipients(place, 101, "bounce@example.com")
    done = run_ctl("send", "campaign.toml", "--rehearse", cwd=place).ok()
    lines = done.stdout.splitlines()
    assert "rehearsal  news: 102 of 102 rows would be mailed" in lines
    assert "sent  101" in lines
    assert "limit  rate.per_second = 10" in lines
    assert "time_needed  at least 10 s" in lines
    assert "bounced  bounce@example.com: 550 5.1.1 User unknown" in lines
    assert any(re.fullmatch(r"reached_here  [\d,]+ messages a second", line) for line in lines)
    kept = re.fullmatch(r"messages  message-1.eml, message-2.eml, message-3.eml in (\S+)", lines[-1])
    assert kept
    for path in Path(kept[1]).iterdir():
        path.unlink()
    Path(kept[1]).rmdir()


def test_one_example_stands_for_all_who_met_the_same(place: Path) -> None:
    """Many with one reply do not hide the only one with another; a rejected row is told in words, not as CSV."""
    write_campaign(place, more="[breaker]\nbounced = 0")
    bounced = [f"bounce+{n}@example.com" for n in range(8)]
    write_recipients(place, 5, *bounced, "data-554@example.com", '"no, address"', "nor this")
    lines = run_ctl("send", "campaign.toml", "--rehearse", "--keep", "kept", cwd=place).ok().stdout.splitlines()
    told = [line for line in lines if line.startswith(("bounced  bounce", "bounced  data"))]
    assert told == [
        "bounced  bounce+0@example.com and 7 more: 550 5.1.1 User unknown",
        next(line for line in lines if line.startswith("bounced  data-554@example.com: 554")),
    ]
    assert [line for line in lines if line.startswith("rejected  line ")] == [
        'rejected  line 16 and 1 more: no @ in the address: "no, address",Anna'
    ]
    assert f"all 2 rejected rows are in {place}/kept/rejects.csv" in lines
    assert not [line for line in lines if line.startswith("and ")]


def test_nothing_to_keep_leaves_no_directory(place: Path) -> None:
    """Nobody accepted it and no row was rejected: the temporary directory goes; nothing points at it."""
    (place / "tmp").mkdir()
    write_campaign(place, more="[breaker]\nbounced = 0")
    write_recipients(place, 0, *(f"bounce+{n}@example.com" for n in range(7)))
    chosen = environment() | {"TMPDIR": str(place / "tmp")}
    done = subprocess.run(
        [sys.executable, "-m", "ctl.main", "send", "campaign.toml", "--rehearse", "--json"],
        cwd=place, env=chosen, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["campaign"]["bounced"], found["messages"], found["kept"]) == (7, [], None)
    assert list((place / "tmp").iterdir()) == []


def test_faults_can_be_asked_for(place: Path) -> None:
    """Deferred ones come through after a second, bounced ones do not: the account adds up with the server's counts."""
    write_campaign(place, more="[breaker]\nbounced = 0\ndeferred = 0")
    found = rehearsed(place, "--defer", "0.2", "--bounce", "0.1", "--keep", "kept")
    campaign, relay = found["campaign"], found["relay"]
    assert campaign["sent"] == relay["messages"]
    assert campaign["sent"] + campaign["bounced"] == 300
    assert campaign["bounced"] == relay["bounced"] > 0
    assert relay["deferred"] > 0


def test_the_account_is_that_of_the_real_instance(engine: StartEngine, real_relay: socket.socket) -> None:
    """The list and the suppressions of an engine that runs; it learns nothing of the rehearsal, which ends alone."""
    running = engine(relay=real_relay.getsockname()[1])
    write_campaign(running.directory, audience='audience = "customers"')
    text = (running.directory / "campaign.toml").read_text().replace('"main"', '"default"')
    (running.directory / "campaign.toml").write_text(text)
    (running.directory / "message.txt").write_text("Dear {{ first_name }}\n")
    write_recipients(running.directory, 50)
    running.ctl("import", "customers", "recipients.csv").ok()
    running.ctl("suppress", "add", "reader-3@example.com", "READER-4@example.com", "other@example.org").ok()
    for _ in range(2):  # while it runs, and after it
        found = rehearsed(running.directory, "--keep", "kept")
        assert (found["campaign"]["audience"], found["campaign"]["sent"], found["campaign"]["suppressed"]) == (
            50,
            48,
            2,
        )
        assert found["suppressions"] == f"3 suppressed addresses of {running.state.root}"
        if running.pid is not None:
            assert running.ctl("campaign", "list", "--json").ok().json() == {"campaigns": []}
            running.stop()


def test_a_list_nobody_keeps_is_told_with_a_way_out(place: Path) -> None:
    """No instance, no list: exit status 1, one line and what to do."""
    write_campaign(place, audience='audience = "customers"')
    done = run_ctl("send", "campaign.toml", "--rehearse", cwd=place)
    assert done.status == 1
    assert "error: the list `customers` cannot be read: " in done.stderr
    assert "--recipients FILE" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('relay = "main"', 'relay = "nian"'), "campaign.toml:6:9: no relay or pool has this name"),
        (('from = "News', 'fromm = "News'), "campaign.toml:3:1: unknown key: `fromm`"),
        (('subject = "Hello', 'subject = "{{ surname }}'), "recipients.csv:2:None: no field `surname`"),
        (("recipients.csv", "nobody.csv"), "campaign.toml:5:14: `recipients`: no such file"),
    ],
)
def test_what_is_wrong_with_the_campaign_is_told_as_ever(place: Path, change: tuple[str, str], said: str) -> None:
    """Exit status 2 and the place in the file as it was written, whatever the rehearsal makes of it."""
    path = place / "campaign.toml"
    path.write_text(path.read_text().replace(*change))
    done = run_ctl("send", "campaign.toml", "--rehearse", "--json", cwd=place)
    assert (done.status, done.stdout) == (2, "")
    error = done.error()
    assert said in f"{error['file']}:{error['line']}:{error['column']}: {error['message']}"


def test_a_campaign_that_would_stop_stops_here(place: Path) -> None:
    """The breaker trips: exit status 1, and the account says why."""
    write_campaign(place, more="[breaker]\nbounced = 0.05\nafter = 10")
    write_recipients(place, 5000)
    slow = ("--latency", "200")  # the breaker looks now and then: there must be something left to stop
    done = run_ctl(
        "send", "campaign.toml", "--rehearse", "--bounce", "0.9", *slow, "--keep", "kept", "--json", cwd=place
    )
    assert done.status == 1
    found = json.loads(done.stdout)
    assert found["campaign"]["state"] == "paused"
    assert found["errors"][0].startswith("the campaign is paused: ")


def test_options_of_a_rehearsal_are_refused_without_one(place: Path) -> None:
    """A share of bounces in earnest is not what anybody wants."""
    done = run_ctl("send", "campaign.toml", "--bounce", "0.1", cwd=place)
    assert (done.status, done.stdout) == (2, "")
    assert "`--bounce` is for `--rehearse`" in done.stderr
    done = run_ctl("send", "campaign.toml", "--rehearse", "--no-wait", cwd=place)
    assert (done.status, done.stdout) == (2, "")
    assert "`--no-wait` does not go with `--rehearse`" in done.stderr


def test_faults_that_cannot_be_are_refused_before_anything_is_done(place: Path) -> None:
    """Shares above 1 together: what the server says of its options is our error, exit status 2."""
    done = run_ctl("send", "campaign.toml", "--rehearse", "--defer", "0.6", "--bounce", "0.6", cwd=place)
    assert (done.status, done.stdout) == (2, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: --defer, --bounce, ")
    assert error.endswith(" together at most 1")
    assert hint.startswith("hint: ")
    done = run_ctl("send", "campaign.toml", "--rehearse", "--bounce", "nan", "--json", cwd=place)
    assert (done.status, done.stdout) == (2, "")
    assert done.error()["message"] == "--bounce: a share between 0 and 1 is needed: nan"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["an engine in", "checking", "is running: audience"])
def test_an_interrupted_rehearsal_leaves_nothing(place: Path, moment: str, number: signal.Signals) -> None:
    """At its start, in the checks, in the middle of sending: exit status 130 and a clean machine."""
    process, where = begin(place)
    if moment != "an engine in":
        read_until(process, moment)
    segments = segments_of(where)
    process.send_signal(number)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert not Path(where).exists()
    until(lambda: processes_of(where) == [], within_s=10)
    assert not [name for name in segments if (SHARED_MEMORY / name).exists()]


def test_a_killed_rehearsal_leaves_no_process(place: Path) -> None:
    """SIGKILL in the middle of sending: engine and server end by themselves; only the directory is left."""
    process, where = begin(place, "--keep", "kept")
    read_until(process, "is running: audience")
    started = processes_of(where)
    assert len(started) > 2
    process.kill()
    process.communicate(timeout=60)
    until(lambda: processes_of(where) == [], within_s=30)
    assert segments_of(where) == []
    subprocess.run(["rm", "-r", "--", where], check=True)
