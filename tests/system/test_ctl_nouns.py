"""Lists, suppression, relays, events, exports: the smaller nouns of the command line against a real engine."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fixtures.ctl import environment
from tests.fixtures.until import until

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.engine import StartEngine
    from tests.fixtures.sink import StartSink

pytest_plugins = ["tests.fixtures.engine", "tests.fixtures.sink"]


def test_a_list_is_imported_shown_left_and_mailed(engine: StartEngine, sink: StartSink) -> None:
    """A dry run changes nothing; whoever leaves stays away when the file is imported again, and is not mailed."""
    relay = sink(keep=True)
    running = engine(relay=relay.port)
    assert running.ctl("list").ok().stderr == "no list is kept yet; `ctl import LIST FILE` makes one\n"
    path = running.directory / "members.csv"
    path.write_text("email,first_name\na@example.com,Zoë\nb@example.com,Łukasz\nb@example.com,X\nnobody,Y\n")
    dry = running.ctl("import", "members", "members.csv", "--dry-run", "--json").ok().json()
    wanted = {"rows": 4, "rejected": 1, "duplicates": 1, "dry_run": True}
    assert {name: dry[name] for name in wanted} == wanted
    assert Path(dry["rejects_file"]).read_text().count("nobody") == 1
    refused = running.ctl("import", "members", "members.csv", "--max-rejected", "0.2")
    assert (refused.status, refused.stdout) == (1, "")
    assert refused.stderr.startswith(
        "error: members.csv: 1 of 4 rows would be rejected, more than 20%; nothing was imported\nhint: each with its "
    )
    assert running.ctl("list", "--json").ok().json() == {"lists": []}
    imported = running.ctl("import", "members", "members.csv", "--max-rejected", "0.25").ok()
    assert {"list  members", "rows  4", "added  2", "rejected  1"} <= set(imported.stdout.splitlines())
    assert running.ctl("list", "show", "members", "--json").ok().json()["subscribed"] == 2
    left = running.ctl("list", "unsubscribe", "members", "B@example.com").ok()
    assert left.stderr.lower() == "b@example.com is off list members\n"
    again = running.ctl("import", "members", "members.csv", "--json").ok().json()
    assert (again["added"], again["unsubscribed_kept"]) == (0, 1)
    assert "members" in running.ctl("list").ok().stdout
    campaign = running.campaign("news", 0)
    campaign.write_text(campaign.read_text().replace('recipients = "recipients.csv"', 'audience = "members"'))
    assert running.ctl("send", str(campaign), "--json").ok().json()["sent"] == 1
    assert [message["rcpt_to"] for message in relay.messages()] == ["a@example.com"]
    for arguments, text in (
        (["list", "show", "nemo"], "error: no list of that name: nemo\n"),
        (["import", "members", "none.csv"], "error: none.csv: no such file\n"),
    ):
        refused = running.ctl(*arguments)
        assert refused.status == 2
        assert refused.stderr.startswith(text)


def test_suppressed_addresses_are_not_mailed(engine: StartEngine, sink: StartSink) -> None:
    """Added, listed, imported, removed; the account counts them as suppressed."""
    running = engine(relay=sink().port)
    added = running.ctl("suppress", "add", "Reader-1@example.com", "reader-2@example.com", "--reason", "complaint").ok()
    assert added.stdout.splitlines()[0] == "added  2"
    (running.directory / "gone.txt").write_text("reader-2@example.com\nreader-3@example.com\n")
    imported = running.ctl("suppress", "import", "gone.txt", "--json").ok().json()
    assert (imported["rows"], imported["added"], imported["already"]) == (2, 1, 1)
    listed = running.ctl("suppress", "list", "--json").ok().json()
    assert (listed["total"], listed["suppressions"][0]["address"]) == (3, "reader-3@example.com")
    assert "complaint" in running.ctl("suppress", "list", "--prefix", "reader-1").ok().stdout
    assert running.ctl("suppress", "remove", "reader-3@example.com").ok().stdout.splitlines()[0] == "removed  1"
    account = running.ctl("send", str(running.campaign("news", 10)), "--json").ok().json()
    assert (account["suppressed"], account["sent"]) == (2, 8)
    assert running.ctl("suppress", "add", "nobody").status == 2


def test_relays_are_listed_and_checked(engine: StartEngine, sink: StartSink) -> None:
    """Without a name all of them; one that does not exist is an error."""
    relay = sink()
    running = engine(relay=relay.port, settings="[pool.main]\ndefault = 3\n", rate="{ per_second = 50 }")
    listed = running.ctl("relay", "list").ok().stdout
    assert f"127.0.0.1:{relay.port}" in listed
    assert "per_second 50" in listed
    assert "default 3" in listed
    checked = running.ctl("relay", "check").ok().stdout.splitlines()
    assert checked[:3] == ["relay  default", f"server  127.0.0.1:{relay.port}", "usable  yes"]
    assert "tls  not encrypted" in checked
    assert running.ctl("relay", "check", "default", "--json").ok().json()["ok"] is True
    refused = running.ctl("relay", "check", "nemo")
    assert (refused.status, refused.stdout) == (2, "")


def test_the_settings_in_force_are_shown_as_the_file_writes_them(engine: StartEngine) -> None:
    """One key a line, dotted; the password is not among them."""
    running = engine(relay=25, start=False, username='"me"', password_file='"pw"')
    (running.directory / "pw").write_text("top secret\n")
    running.start()
    shown = running.ctl("config", "show").ok()
    assert shown.stderr == f"settings: {running.directory}/ecm.toml\n"
    assert {'relay.default.username = "me"', "relay.default.port = 25", "budget.share = 0.9"} <= set(
        shown.stdout.splitlines()
    )
    assert "top secret" not in shown.stdout + running.ctl("config", "show", "--json").ok().stdout


def test_events_are_followed_without_a_gap(engine: StartEngine, sink: StartSink) -> None:
    """One JSON object a line with every key; numbers of a topic follow each other; the last numbers are told."""
    running = engine(relay=sink().port)
    follower = running.begin("events", "--follow", "campaign", "--json")
    assert follower.stdout is not None
    assert follower.stderr is not None
    assert follower.stderr.readline() == "following campaign.; Ctrl-C ends it\n"
    running.ctl("campaign", "create", str(running.campaign("knock", 1))).ok()
    first = json.loads(follower.stdout.readline())
    assert (first["topic"], first["event"], first["campaign"]) == ("campaign.1.", "campaign.created", 1)
    running.ctl("send", str(running.campaign("news", 5))).ok()
    events = [first]
    while events[-1]["event"] != "campaign.finished":
        events.append(json.loads(follower.stdout.readline()))
    follower.send_signal(signal.SIGINT)
    _, stderr = follower.communicate(timeout=30)
    assert follower.returncode == 130
    assert "missed" not in stderr
    assert all(set(event) == {"seq", "time", "topic", "event", "campaign", "data"} for event in events)
    numbers = [event["seq"] for event in events if event["topic"] == "campaign.2."]
    assert numbers == list(range(1, len(numbers) + 1))
    topics = running.ctl("events", "campaign", "--json").ok().json()["topics"]
    assert topics["campaign.2."] == numbers[-1]
    assert all(topic.startswith("campaign.") for topic in topics)


def test_following_events_ends_with_the_engine(engine: StartEngine) -> None:
    """Exit status 3 when it stops."""
    running = engine()
    follower = running.begin("events", "--follow")
    assert follower.stderr is not None
    assert follower.stderr.readline() == "following everything; Ctrl-C ends it\n"
    running.stop()
    assert follower.wait(30) == 3
    follower.communicate()


def test_a_reader_that_has_seen_enough_is_no_error(engine: StartEngine) -> None:
    """`ctl stats --watch --json | head -1` ends with status 0 and says nothing."""
    watcher = engine().begin("stats", "--watch", "--json")
    assert watcher.stdout is not None
    json.loads(watcher.stdout.readline())
    watcher.stdout.close()
    assert watcher.stderr is not None
    assert watcher.stderr.read() == ""
    watcher.stderr.close()
    assert watcher.wait(10) == 0


def test_outcomes_are_exported_as_csv(engine: StartEngine, sink: StartSink) -> None:
    """A header, then each recipient with its outcome."""
    running = engine(relay=sink().port)
    running.ctl("send", str(running.campaign("news", 3, addresses="bounce+{}@example.com".format))).ok()
    exported = running.ctl("campaign", "export", "news", "--csv").ok().stdout
    rows = list(csv.DictReader(io.StringIO(exported)))
    assert [(row["email"], row["state"], row["code"]) for row in rows] == [
        (f"bounce+{n}@example.com", "bounced", "550") for n in (1, 2, 3)
    ]


def test_the_sink_listens_counts_and_ends(engine: StartEngine) -> None:
    """`ctl sink --port 0 --json`: its address first, its counts at SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ctl.main", "sink", "--port", "0", "--json", "--bounce", "0.5", "--seed", "3"],
        stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    where = json.loads(process.stdout.readline())
    running = engine(relay=where["port"])
    account = running.ctl("send", str(running.campaign("news", 40)), "--json").ok().json()
    running.stop()
    process.terminate()
    counts = json.loads(process.stdout.readline())
    assert process.wait(10) == 0
    process.stdout.close()
    assert account["bounced"] > 5
    assert (counts["messages"], counts["bounced"]) == (account["sent"], account["bounced"])


def test_campaigns_are_listed_newest_first(engine: StartEngine, sink: StartSink) -> None:
    """As a table, and as objects."""
    running = engine(relay=sink().port)
    for name in ("first", "second"):
        running.ctl("send", str(running.campaign(name, 2)), "--no-wait").ok()
    until(lambda: running.show("second")["state"] == "finished")
    listed = running.ctl("campaign", "list", "--json").ok().json()["campaigns"]
    assert [(one["id"], one["name"]) for one in listed] == [(2, "second"), (1, "first")]
    lines = running.ctl("campaign", "list").ok().stdout.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [["id", "name", "state"], ["2", "second", "finished"]]
