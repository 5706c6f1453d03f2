"""The audit: the account of a campaign proved from its files, and every way in which it can fail to add up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from broker.audit import main, recount
from shm.files.ledger import States
from tests.fixtures.campaign_files import INSTANCE, NOW, CampaignFiles, campaign_files

__all__ = ["campaign_files"]

FINAL = {"audience": 14, "sent": 14, "attempts": 14, "pending": 0, "in_flight": 0, "deferred": 0, "duplicates": 1}


def verify(files: CampaignFiles, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    """Exit status and JSON document of the command."""
    status = main([str(files.state.root), "1", "--json"])
    return status, json.loads(capsys.readouterr().out)


def finish(files: CampaignFiles) -> None:
    files.send(1, dict.fromkeys(range(10), States.SENT))
    files.send(2, dict.fromkeys(range(4), States.SENT))


def test_the_counts_are_printed_one_a_line_and_sum_to_the_audience(
    campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """Name and number of each count on stdout, nothing on stderr, status 0."""
    campaign_files.send(1, {0: States.SENT, 1: States.BOUNCED, 2: States.DEFERRED, 3: States.UNCERTAIN})
    assert main([str(campaign_files.state.root), "autumn-news"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "audience  14",
        "pending  10",
        "in_flight  0",
        "deferred  1",
        "sent  1",
        "bounced  1",
        "failed  0",
        "suppressed  0",
        "cancelled  0",
        "uncertain  1",
        "duplicates  1",
        "attempts  4",
        "resent  0",
        "verdict  ok: everybody is accounted for",
    ]
    assert err == ""


def test_rows_in_flight_are_counted_while_a_lease_is_out(
    campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ledger whose lease is open is counted from its rows: claimed and sending are in flight."""
    ledger = campaign_files.ledger(1)
    ledger.open_lease(1, 2, "boot")
    ledger.claim([0, 1, 2])
    ledger.sending(0, NOW)
    status, found = verify(campaign_files, capsys)
    ledger.close()
    assert (status, found["in_flight"], found["pending"], found["audience"]) == (0, 3, 11, 14)
    counts = recount(campaign_files.state.campaign(1), INSTANCE, 1)
    assert (counts.in_flight, counts.pending, counts.attempts) == (3, 11, 1)


def test_a_finished_campaign_agrees_with_the_store(
    campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files and store say the same of a campaign that has ended: ok; and no file appears beside the store."""
    finish(campaign_files)
    campaign_files.store("finished", **FINAL)
    before = sorted(os.listdir(campaign_files.state.root))
    status, found = verify(campaign_files, capsys)
    assert (status, found["ok"], found["discrepancies"]) == (0, True, [])
    assert sorted(os.listdir(campaign_files.state.root)) == before


def test_numbers_of_the_store_that_the_files_do_not_bear_out_are_named(
    campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """A final account that says more than the ledgers is a discrepancy for each number, and status 1."""
    finish(campaign_files)
    campaign_files.store("finished", **FINAL | {"sent": 13, "bounced": 1})
    status = main([str(campaign_files.state.root), "1", "--json"])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (status, found["ok"]) == (1, False)
    assert found["discrepancies"] == [
        "sent: 14 in the files, 13 in the store",
        "bounced: 0 in the files, 1 in the store",
    ]
    error = json.loads(err.splitlines()[-1])["error"]
    assert (error["code"], error["exit"]) == ("discrepancy", 1)


def test_a_finished_campaign_with_somebody_pending_is_a_discrepancy(
    campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invariant 8, whatever numbers the store kept."""
    campaign_files.send(1, dict.fromkeys(range(10), States.SENT))
    campaign_files.store("finished")
    status, found = verify(campaign_files, capsys)
    assert status == 1
    assert found["discrepancies"] == ["pending: 4, though the campaign is finished"]


@pytest.mark.parametrize("kind", ["shard", "ledger"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_missing_file_is_named(
    campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str], kind: str, number: int
) -> None:
    """A shard without its ledger, or the other way round, leaves recipients unaccounted for."""
    path = campaign_files.state.campaign(1) / f"shard-{number:06d}.{kind}"
    path.unlink()
    status, found = verify(campaign_files, capsys)
    assert status == 1
    assert f"{path}: the file is missing" in str(found["discrepancies"])


def test_a_shard_that_only_the_store_still_knows_is_missed(
    campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """Removing the last shard with its ledger does not make the account add up."""
    campaign_files.store("running")
    for path in campaign_files.state.campaign(1).glob("shard-000002.*"):
        path.unlink()
    status, found = verify(campaign_files, capsys)
    assert status == 1
    assert "shard-000002.shard: the file is missing" in str(found["discrepancies"])
    assert "audience: 10 in the files, 14 in the store" in str(found["discrepancies"])


def test_a_summary_that_the_rows_do_not_bear_out_is_a_discrepancy(
    campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row changed behind a header that says it is true does not go unnoticed."""
    campaign_files.send(1, {0: States.SENT})
    ledger = campaign_files.ledger(1)
    ledger.a[0] = 0
    ledger.close()
    status, found = verify(campaign_files, capsys)
    assert status == 1
    assert "the summary says" in str(found["discrepancies"])


def test_a_row_in_no_state_is_a_discrepancy_with_its_place(
    campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged row is named by file and number, and its shard's people are missing from the nine counts."""
    ledger = campaign_files.ledger(2)
    ledger.a[3] = 13
    ledger.close()
    status, found = verify(campaign_files, capsys)
    assert status == 1
    assert f"{campaign_files.state.ledger(1, 2)}: row 3 begins with byte 13" in str(found["discrepancies"])
    assert "the nine counts sum to 10, the audience is 15" in str(found["discrepancies"])


def test_the_ledger_of_another_campaign_is_a_discrepancy(
    campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file put in the place of another is found by its header."""
    campaign_files.state.ledger(1, 2).write_bytes(campaign_files.state.ledger(1, 1).read_bytes())
    status, found = verify(campaign_files, capsys)
    assert status == 1
    assert "shard is 1, expected 2" in str(found["discrepancies"])


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_without_a_store_that_can_be_read_the_files_alone_decide(
    campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    """No store, an empty one and a broken one are no discrepancy, and nothing is created."""
    if content is not None:
        campaign_files.state.store_db.write_bytes(content)
    status, found = verify(campaign_files, capsys)
    assert (status, found["pending"]) == (0, 14)
    assert campaign_files.state.store_db.exists() == (content is not None)


@pytest.mark.parametrize(("wanted", "said"), [("9", "a campaign 9"), ("nobody", "a campaign named `nobody`")])
def test_a_campaign_without_files_is_unknown(
    campaign_files: CampaignFiles, capsys: pytest.CaptureFixture[str], wanted: str, said: str
) -> None:
    """Status 2, the campaign as it was written, and nothing on stdout."""
    assert main([str(campaign_files.state.root), wanted]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == f"error: no files of {said}"


def test_a_directory_without_an_instance_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error says where it looked; with --json it is one map."""
    assert main([str(tmp_path), "1", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["error"]["message"] == f"no engine's state in {tmp_path}"


def test_the_audit_runs_as_a_module(campaign_files: CampaignFiles) -> None:
    """Without an engine, in a process of its own."""
    command = [sys.executable, "-m", "broker.audit", str(campaign_files.state.root), "autumn-news"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("audience  14\n")
