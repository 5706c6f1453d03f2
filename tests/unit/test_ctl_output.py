"""What the command line prints, without running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from broker.contract.errors import EcmError
from ctl import output

CAMPAIGN: dict[str, Any] = {
    "id": 7, "name": "news", "state": "finished", "reason": None, "rows": 20010, "rejected": 4, "duplicates": 6,
    "rejects_file": "/x/rejects.csv", "audience": 20000, "pending": 0, "in_flight": 0, "deferred": 0, "sent": 19600,
    "bounced": 400, "failed": 0, "suppressed": 0, "cancelled": 0, "uncertain": 0, "attempts": 20212, "resent": 3,
    "per_second": 1496.2, "eta_s": None, "seconds": 13.101, "limit": None, "next_attempt": None, "progress": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (60, "1 min"), (250, "4 min 10 s"), (7500, "2 h 5 min"),
     (273_600, "3 d 4 h"), (3600, "1 h")],
)  # fmt: skip
def test_a_duration_is_told_in_two_units_at_most(seconds: float, text: str) -> None:
    """Seconds below a minute, then two units, the lower one only if it is there."""
    assert output.duration(seconds) == text


def test_an_account_is_one_line_for_each_count(capsys: pytest.CaptureFixture[str]) -> None:
    """Name, two spaces, number with thousands separated: `sent  19,600`."""
    output.account(CAMPAIGN)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["campaign  news (id 7)", "state  finished"]
    for line in ("rows  20,010", "audience  20,000", "sent  19,600", "bounced  400", "in_flight  0", "resent  3"):
        assert line in lines
    assert lines[-3:] == ["rejects_file  /x/rejects.csv", "seconds  13.101", "per_second  1,496.2"]


def test_an_account_that_is_not_known_yet_says_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    """Counts of a campaign that is being prepared are unknown, not 0."""
    output.account(CAMPAIGN | {"sent": None, "state": "preparing"})
    assert "sent  unknown" in capsys.readouterr().out.splitlines()


def test_a_table_off_the_terminal_is_separated_by_two_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are aligned, numbers to the right, and nothing is drawn."""
    output.table(["name", "sent"], [["news", 12345], ["a", None]], right=["sent"])
    assert capsys.readouterr().out == "name    sent\nnews  12,345\na          -\n"


def test_an_error_names_a_file_as_seen_from_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text says `recipients.csv`, JSON the path that the engine named."""
    monkeypatch.chdir(tmp_path)
    error = EcmError("no_header", "no header", file=str(tmp_path / "recipients.csv"), line=1, column=1, hint="add one")
    output.fail(error, as_json=True)
    assert json.loads(capsys.readouterr().err)["error"]["file"] == str(tmp_path / "recipients.csv")
    output.fail(error, as_json=False)
    assert capsys.readouterr().err == "error: recipients.csv:1:1: no header\nhint: add one\n"


def test_what_a_relay_says_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters are written out, in lines of data and of talk."""
    output.pairs([("banner", "220 \x1b[31mhello\r")])
    output.say("\x1b]0;title\x07")
    printed = capsys.readouterr()
    assert printed.out == "banner  220 \\x1b[31mhello\\x0d\n"
    assert printed.err == "\\x1b]0;title\\x07\n"
