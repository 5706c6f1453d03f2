"""The export: every recipient with what became of it, as CSV and as NDJSON."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest

from broker.export import FIELDS, main
from shm.files.ledger import States, pack_a
from tests.fixtures.campaign_files import NOW, CampaignFiles, campaign_files

__all__ = ["campaign_files"]

TEXT = '451 4.7.1 wait,\n"a bit"'


def export(files: CampaignFiles, form: str) -> str:
    command = [sys.executable, "-m", "broker.export", str(files.state.root), "autumn-news", form]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.decode()


def test_every_recipient_of_the_audience_is_one_row_in_the_order_of_the_source(campaign_files: CampaignFiles) -> None:
    """Duplicates are left out; the line says where in the source each one stands."""
    rows = list(csv.DictReader(io.StringIO(export(campaign_files, "--csv"), newline="")))
    assert [row["email"] for row in rows] == [f"u1{n}@example.com" for n in range(10)] + [
        f"u2{n}@example.com" for n in range(4)
    ]
    assert [int(row["line"]) for row in rows] == list(range(2, 16))
    assert {row["state"] for row in rows} == {"pending"}


def test_an_outcome_says_state_reply_and_times(campaign_files: CampaignFiles) -> None:
    """Sent: when; deferred: the relay's words, the first attempt and the next; a claimed row is in flight."""
    campaign_files.send(1, {0: States.SENT, 1: States.DEFERRED, 2: States.BOUNCED})
    ledger = campaign_files.ledger(1)
    ledger.claim([3])
    ledger.close()
    rows = [json.loads(line) for line in export(campaign_files, "--ndjson").splitlines()]
    assert rows[0] == {
        "email": "u10@example.com",
        "state": "sent",
        "attempts": 1,
        "code": 250,
        "enhanced": "2.0.0",
        "reply": None,
        "first_attempt": None,
        "finished": "2023-11-14T22:13:21.000Z",
        "next_attempt": None,
        "line": 2,
    }
    assert rows[1] == {
        "email": "u11@example.com",
        "state": "deferred",
        "attempts": 1,
        "code": 451,
        "enhanced": "4.7.1",
        "reply": TEXT,
        "first_attempt": "2023-11-14T22:13:20.000Z",
        "finished": None,
        "next_attempt": "2023-11-14T22:18:22.000Z",
        "line": 3,
    }
    assert (rows[2]["state"], rows[2]["reply"], rows[2]["finished"]) == ("bounced", TEXT, "2023-11-14T22:13:22.000Z")
    assert (rows[3]["state"], rows[3]["attempts"], rows[3]["code"], rows[3]["reply"]) == ("in_flight", 0, None, None)


def test_who_got_no_reply_is_told_why(campaign_files: CampaignFiles) -> None:
    """Before the message was whole, or after it: without a code and a text there is a reason all the same."""
    ledger = campaign_files.ledger(1)
    for row, state in enumerate((States.FAILED, States.UNCERTAIN)):
        ledger.a[row] = pack_a(state, attempts=1)
    ledger.close()
    rows = [json.loads(line) for line in export(campaign_files, "--ndjson").splitlines()]
    assert str(rows[0]["reply"]).endswith("before it had the message")
    assert str(rows[1]["reply"]).endswith("after the message was handed over")
    assert rows[2]["reply"] is None


def test_csv_and_ndjson_say_the_same(campaign_files: CampaignFiles) -> None:
    """Each field of each row, quotes, commas and line breaks in a reply included."""
    campaign_files.send(1, {0: States.SENT, 1: States.DEFERRED, 2: States.BOUNCED})
    table = list(csv.reader(io.StringIO(export(campaign_files, "--csv"), newline="")))
    maps = [json.loads(line) for line in export(campaign_files, "--ndjson").splitlines()]
    assert table[0] == list(FIELDS)
    assert table[1:] == [["" if row[name] is None else str(row[name]) for name in FIELDS] for row in maps]


def test_the_last_of_several_replies_is_the_one_told(campaign_files: CampaignFiles) -> None:
    """A recipient refused twice shows the second refusal; one then accepted shows none."""
    campaign_files.send(1, {0: States.DEFERRED, 1: States.DEFERRED}, text="451 first")
    campaign_files.send(1, {0: States.DEFERRED, 1: States.SENT}, text="452 second")
    rows = [json.loads(line) for line in export(campaign_files, "--ndjson").splitlines()]
    assert (rows[0]["reply"], rows[0]["attempts"]) == ("452 second", 2)
    assert (rows[1]["reply"], rows[1]["attempts"]) == (None, 2)


def test_a_reader_that_stops_early_ends_the_export_without_a_word(campaign_files: CampaignFiles) -> None:
    """`| head` closes the pipe: no traceback, no message."""
    ledger = campaign_files.ledger(1)
    ledger.suppress([0], NOW)
    ledger.close()
    command = [sys.executable, "-m", "broker.export", str(campaign_files.state.root), "1", "--csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as export:
        assert export.stdout is not None
        assert export.stderr is not None
        export.stdout.close()
        assert export.stderr.read() == b""


def test_an_unknown_campaign_is_one_line(campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and the audit's words; NDJSON is for programs, so its error is JSON."""
    assert main([str(campaign_files.state.root), "9", "--csv"]) == 2
    assert capsys.readouterr().err.startswith("error: no files of a campaign 9\nhint: ")
    assert main([str(campaign_files.state.root), "9", "--ndjson"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "unknown_campaign"


def test_a_missing_ledger_stops_the_export_with_its_name(
    campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was written so far stands; the status says that it is not all."""
    campaign_files.state.ledger(1, 2).unlink()
    assert main([str(campaign_files.state.root), "1", "--csv"]) == 1
    assert str(campaign_files.state.ledger(1, 2)) in capsys.readouterr().err
