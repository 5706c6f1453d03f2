"""`ctl send` and `ctl campaign` against a real engine and a real sink: accounts, texts, exit statuses."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fixtures.until import until

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.engine import RunningEngine, StartEngine
    from tests.fixtures.sink import StartSink

pytest_plugins = ["tests.fixtures.engine", "tests.fixtures.sink"]

COUNTS = ("pending", "in_flight", "deferred", "sent", "bounced", "failed", "suppressed", "cancelled", "uncertain")
KEYS = {
    "id", "name", "state", "reason", "created", "launched", "finished", "rows", "rejected", "duplicates",
    "rejects_file", "audience", *COUNTS, "attempts", "resent", "per_second", "eta_s", "seconds", "limit",
}  # fmt: skip


def assert_sums(campaign: dict[str, Any]) -> None:
    """Every key is there, and everybody is accounted for."""
    assert set(campaign) >= KEYS
    assert sum(campaign[name] for name in COUNTS) == campaign["audience"]
    assert campaign["rows"] == campaign["rejected"] + campaign["duplicates"] + campaign["audience"]


def break_recipients(path: Path, text: str) -> None:
    (path.parent / "recipients.csv").write_text(text)


def test_a_campaign_is_sent_to_its_end(engine: StartEngine, sink: StartSink) -> None:
    """Every recipient gets one message; the account says so in text and in JSON; files and engine agree."""
    relay = sink(keep=True)
    running = engine(relay=relay.port)
    path = running.campaign("news", 2500)
    sent = running.ctl("send", str(path)).ok()
    lines = sent.stdout.splitlines()
    for line in ("campaign  news (id 1)", "state  finished", "rows  2,500", "audience  2,500", "sent  2,500"):
        assert line in lines
    talk = sent.stderr.splitlines()
    assert talk[0] == "campaign news (id 1) is being prepared"
    assert talk[-1].startswith("campaign news is finished: 2,500 of 2,500 sent in ")
    shown = running.show("news")
    assert_sums(shown)
    assert (shown["sent"], shown["state"], shown["progress"]) == (2500, "finished", None)
    assert sorted(message["rcpt_to"] for message in relay.messages()) == sorted(
        f"reader-{n}@example.com" for n in range(1, 2501)
    )
    again = running.ctl("send", str(path))
    assert again.status == 2
    assert again.stderr.startswith(f"error: {path.relative_to(running.directory)}:1:8: campaign `news` was finished on")
    assert "2,500 sent" in again.stderr
    assert running.ctl("campaign", "wait", "1", "--json").ok().json()["sent"] == 2500
    exported = running.ctl("campaign", "export", "1", "--ndjson").ok().stdout.splitlines()
    assert {json.loads(line)["state"] for line in exported} == {"sent"}
    assert len(exported) == 2500
    running.stop()
    verified = running.ctl("campaign", "verify", "news", "--json").ok().json()
    assert (verified["ok"], verified["sent"]) == (True, 2500)


def test_rows_that_cannot_be_mailed_are_accounted_for(engine: StartEngine, sink: StartSink) -> None:
    """Rejected rows, duplicates, bounces and deferrals: the account adds up; bounces are no failure of the command."""
    running = engine(relay=sink().port, settings="[retry]\nfirst_s = 2\nmax_s = 2\n")
    path = running.campaign("news", 0)
    people = "".join(f"reader-{n}@example.com,Zoë\n" for n in range(40))
    break_recipients(
        path,
        f"email,first_name\n{people}not an address,X\nREADER-1@example.com,Y\n"
        "bounce@example.com,B\ndefer-once@example.com,D\n",
    )
    sent = running.ctl("send", str(path), "--json").ok()
    account = sent.json()
    assert_sums(account)
    wanted = {"rows": 44, "rejected": 1, "duplicates": 1, "audience": 42, "bounced": 1, "sent": 41, "attempts": 43}
    assert {name: account[name] for name in wanted} == wanted
    assert Path(account["rejects_file"]).read_text().count("\n") == 2
    assert "1 retry left" in sent.stderr


def test_another_file_of_recipients_can_be_sent_to(engine: StartEngine, sink: StartSink) -> None:
    """`--recipients` takes the place of the audience; the path is relative to the working directory."""
    relay = sink(keep=True)
    running = engine(relay=relay.port)
    path = running.campaign("news", 5)
    (running.directory / "others.csv").write_text("email,first_name\nother@example.com,O\n")
    assert running.ctl("send", str(path), "--recipients", "others.csv", "--json").ok().json()["sent"] == 1
    assert [message["rcpt_to"] for message in relay.messages()] == ["other@example.com"]


def test_what_is_wrong_is_one_line_with_its_place(engine: StartEngine, sink: StartSink) -> None:
    """Exit status 2, place and hint; with --json stdout is empty. The campaign is a draft that says why."""
    running = engine(relay=sink().port)
    path = running.campaign("news", 3)
    file = str(path.relative_to(running.directory))
    good = path.read_text()

    path.write_text(good.replace("subject", "subjct"))
    assert running.ctl("send", file).stderr == (
        f"error: {file}:2:1: unknown key: `subjct`\nhint: did you mean `subject`?\n"
    )
    path.write_text(good + "\n[")
    assert running.ctl("send", file).stderr.startswith(f"error: {file}:14:2: not valid TOML: ")
    path.write_text(good.replace('"recipients.csv"', '"recipients.csv"\nrelay = "defalt"'))
    assert running.ctl("send", file).stderr == (
        f'error: {file}:6:9: no relay or pool has this name: `"defalt"`\nhint: did you mean "default"?\n'
    )
    path.write_text(good.replace("message.txt", "mesage.txt"))
    assert running.ctl("send", file).stderr == f"error: {file}:4:8: `text`: no such file: mesage.txt\n"
    path.write_text(good)
    assert running.ctl("campaign", "list", "--json").ok().json() == {"campaigns": []}

    break_recipients(path, "name,first_name\nx,y\n")
    for arguments in (["--wait"], ["--no-wait"]):
        refused = running.ctl("send", file, *arguments)
        assert refused.status == 2
        assert refused.stdout == ""
        assert refused.stderr.endswith(
            "error: news/recipients.csv:1:1: no address column (`email`, `e_mail`, `email_address`)\n"
            'hint: name it with `email_column = "..."`; the columns are: name, first_name\n'
        )
    refused = running.ctl("send", file, "--json")
    assert (refused.status, refused.stdout) == (2, "")
    error = refused.error()
    assert (error["code"], error["line"], error["column"], error["exit"]) == ("no_address_column", 1, 1, 2)
    draft = running.show("news")
    assert (draft["state"], draft["reason"]["code"], draft["sent"]) == ("draft", "no_address_column", None)
    assert running.ctl("campaign", "wait", "news").status == 2
    break_recipients(path, "email\nreader@example.com\n")
    refused = running.ctl("send", file)
    assert refused.stderr.splitlines()[-2:] == [
        "error: news/recipients.csv:2: no field `first_name`, which subject uses: 1 recipient",
        'hint: add the column, or write {{ first_name | default("...") }}',
    ]


def test_checking_says_all_that_is_wrong_and_sends_nothing(engine: StartEngine, sink: StartSink) -> None:
    """`campaign check`: exit status 2 with its object on stdout, 0 with the numbers when it can be sent."""
    running = engine(relay=sink().port)
    path = running.campaign("news", 3)
    checked = running.ctl("campaign", "check", str(path)).ok()
    assert checked.stdout.splitlines() == ["rows  3", "rejected  0", "duplicates  0", "suppressed  0", "audience  3"]
    assert "ok: it can be sent" in checked.stderr
    found = running.ctl("campaign", "check", str(path), "--json").ok().json()
    assert (found["ok"], found["errors"]) == (True, [])
    assert any("unsubscribe url is not used" in warning for warning in found["warnings"])
    path.write_text(path.read_text().replace("subject", "subjct").replace("message.txt", "mesage.txt"))
    (path.parent / "recipients.csv").unlink()
    checked = running.ctl("campaign", "check", str(path), "--json")
    assert checked.status == 2
    codes = [error["code"] for error in checked.json()["errors"]]
    assert sorted(codes) == ["file_missing", "file_missing", "missing_key", "unknown_key"]
    assert checked.error()["exit"] == 2
    checked = running.ctl("campaign", "check", str(path))
    assert (checked.status, checked.stdout) == (2, "")
    assert checked.stderr.count("error: ") == 4
    checked = running.ctl("campaign", "check", "none.toml", "--json")
    assert (checked.status, checked.json()["ok"]) == (2, False)
    assert running.ctl("campaign", "list", "--json").ok().json() == {"campaigns": []}


def test_a_relay_that_is_not_there_stops_a_launch(engine: StartEngine) -> None:
    """Exit status 1: the world is wrong, not what the user wrote."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        running = engine(relay=taken.getsockname()[1])
        refused = running.ctl("send", str(running.campaign("news", 3)))
        assert refused.status == 1
        assert "relay `default`" in refused.stderr.splitlines()[-1] + refused.stderr.splitlines()[-2]
        checked = running.ctl("relay", "check", "--json")
        assert (checked.status, checked.json()["ok"], checked.error()["code"]) == (1, False, "relay_unreachable")


def slow(running: RunningEngine, name: str = "news") -> Path:
    """A campaign that takes half a minute, if it is let."""
    return running.campaign(name, 1500, rate="per_second = 50\nburst = 5")


def test_a_running_campaign_is_followed_paused_and_waited_out(engine: StartEngine, sink: StartSink) -> None:
    """Sending again follows; a pause is told on stderr; Ctrl-C stops nothing and says how to go on."""
    running = engine(relay=sink().port)
    path = slow(running)
    begun = running.ctl("send", str(path), "--no-wait", "--json").ok().json()
    assert begun["state"] in ("running", "waiting")
    follower = running.begin("send", str(path))
    assert follower.stderr is not None
    assert follower.stderr.readline() == "campaign news (id 1) is under way\n"
    until(lambda: running.show("news")["sent"] > 20)
    assert running.show("news")["limit"]["name"] == "rate.per_second"
    paused = running.ctl("campaign", "pause", "news", "--json").ok().json()
    assert paused["state"] == "paused"
    assert_sums(paused)
    assert running.ctl("campaign", "pause", "news").status == 2
    told = [follower.stderr.readline(), follower.stderr.readline()]
    assert told[-1] == "campaign news is paused: paused by the operator (ctl campaign resume 1)\n"
    resumed = running.ctl("campaign", "resume", "1").ok()
    assert resumed.stderr.startswith("campaign news is running: ")
    assert follower.stderr.readline() == "campaign news goes on\n"
    follower.send_signal(signal.SIGINT)
    stdout, stderr = follower.communicate(timeout=30)
    assert (follower.returncode, stdout) == (130, "")
    assert "campaign news goes on; follow it with `ctl campaign wait news`" in stderr
    late = running.ctl("campaign", "wait", "news", "--timeout", "0.2")
    assert late.status == 4
    assert late.stderr.endswith("hint: it goes on; `ctl campaign wait news` waits for its end\n")


def test_an_engine_that_goes_away_ends_whoever_waits_with_3(engine: StartEngine, sink: StartSink) -> None:
    """The error says how to go on; the campaign does so when the engine is started again."""
    running = engine(relay=sink().port)
    path = running.campaign("news", 300, rate="per_second = 100\nburst = 5")
    waiter = running.begin("send", str(path))
    until(lambda: running.show("news")["state"] == "running" and running.show("news")["sent"] > 5)
    running.stop()
    stdout, stderr = waiter.communicate(timeout=30)
    assert (waiter.returncode, stdout) == (3, "")
    assert stderr.splitlines()[-1] == (
        "hint: `ctl start` starts one, which goes on with it; `ctl campaign wait news` follows"
    )
    running.start()
    account = running.ctl("campaign", "wait", "news", "--json").ok().json()
    assert_sums(account)
    assert (account["sent"], account["attempts"]) == (300, 300)


def test_a_cancelled_campaign_ends_whoever_waits_with_1(engine: StartEngine, sink: StartSink) -> None:
    """The reply to cancel says how many went out; the waiter prints the account and fails."""
    running = engine(relay=sink().port)
    running.ctl("campaign", "create", str(slow(running))).ok()
    assert running.show("news")["state"] == "draft"
    assert running.ctl("campaign", "wait", "news").status == 2
    running.ctl("campaign", "launch", "news").ok()
    waiter = running.begin("campaign", "wait", "news")
    until(lambda: running.show("news")["sent"] > 5)
    cancelled = running.ctl("campaign", "cancel", "news").ok()
    assert cancelled.stderr.startswith("campaign news is cancelled: ")
    stdout, stderr = waiter.communicate(timeout=30)
    assert waiter.returncode == 1
    assert "state  cancelled" in stdout.splitlines()
    assert stderr.splitlines()[-1] == "error: campaign `news` was cancelled"
    shown = running.show("news")
    assert_sums(shown)
    assert (shown["pending"], shown["in_flight"]) == (0, 0)
    assert shown["cancelled"] > 1000
    assert running.ctl("campaign", "cancel", "news").status == 2
    json_waiter = running.ctl("campaign", "wait", "news", "--json")
    assert (json_waiter.status, json_waiter.stdout) == (1, "")
    assert json_waiter.error()["code"] == "campaign_cancelled"


def test_a_campaign_nobody_knows_is_an_error(engine: StartEngine) -> None:
    """Exit status 2, for every verb, by name and by id."""
    running = engine()
    for verb in ("show", "pause", "resume", "cancel", "launch", "wait"):
        refused = running.ctl("campaign", verb, "nemo")
        assert refused.status == 2
        assert refused.stderr == "error: no campaign `nemo`\nhint: `ctl campaign list` names them\n"
    assert running.ctl("campaign", "show", "99").status == 2
    for verb in ("verify", "export"):
        assert running.ctl("campaign", verb, "nemo").status == 2
