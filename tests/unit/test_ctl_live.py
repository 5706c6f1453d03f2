"""What the moving parts say."""

from __future__ import annotations

import io
from typing import Any

import pytest

from ctl import live
from ctl.live import Bar, Talk, campaign_lines, job_line

NOW = 1_795_516_093.0  # 2026-11-24T10:28:13Z
RUNNING: dict[str, Any] = {
    "name": "news", "state": "running", "audience": 20000, "pending": 12000, "in_flight": 16, "deferred": 30,
    "sent": 7934, "bounced": 20, "failed": 0, "suppressed": 0, "uncertain": 0, "per_second": 1496.2, "eta_s": 8.0,
    "limit": None, "next_attempt": None, "progress": None,
}  # fmt: skip
RETRYING = RUNNING | {"pending": 0, "in_flight": 0, "per_second": 0.0, "eta_s": None}


def test_a_running_campaign_shows_sent_rate_time_left_and_counts() -> None:
    """First line: how far; second line: what went otherwise, and the limit that binds."""
    limited = RUNNING | {"limit": {"name": "rate.per_minute", "value": 5000, "until": None}, "failed": 1}
    assert campaign_lines(limited, NOW) == (
        "news  running  sent 7,934 of 20,000  1,496/s  8.0 s left",
        "deferred 30  bounced 20  failed 1  limit rate.per_minute = 5,000",
    )


def test_when_only_retries_remain_it_says_how_many_and_when() -> None:
    """A rate of 0 would only frighten."""
    waiting = RETRYING | {"next_attempt": "2026-11-24T10:28:55.000Z"}
    assert campaign_lines(waiting, NOW) == (
        "news  running  sent 7,934 of 20,000",
        "deferred 30  bounced 20  30 retries left, next at 10:28:55 UTC (in 42 s)",
    )
    due = RETRYING | {"next_attempt": "2026-11-24T10:28:13.000Z"}
    assert campaign_lines(due, NOW)[1].endswith("30 retries left, next is due now")


def test_preparing_shows_the_progress_of_the_job_if_there_is_any() -> None:
    """Rows, rate, time left; before the loader has said anything, the word alone."""
    progress = {"phase": "reading", "rows": 120000, "per_second": 400000.0, "eta_s": 3.0, "bytes": 5, "bytes_total": 9}
    preparing = RUNNING | {"state": "preparing", "audience": None, "progress": progress}
    assert campaign_lines(preparing, NOW) == ("news  reading  120,000 rows  400,000/s  3.0 s left", "")
    assert job_line({}) == "preparing"


def test_off_the_terminal_there_are_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """One when sending begins, one when only retries remain, each once."""
    talk = Talk()
    for campaign in (RUNNING | {"state": "preparing"}, RUNNING, RUNNING, RETRYING, RETRYING):
        talk.campaign(campaign)
    assert capsys.readouterr().err.splitlines() == [
        "campaign news is running: audience 20,000",
        "campaign news: 30 retries left",
    ]


def test_a_bar_is_drawn_for_every_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it draws on stderr, and what is told stands above it."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(live.sys, "stderr", terminal)
    with live.view() as view:
        assert isinstance(view, Bar)
        view.job({"rows": 5, "bytes": 1, "bytes_total": 2})
        view.campaign(RUNNING | {"state": "preparing", "audience": None})
        view.campaign(RUNNING)
        view.tell("campaign news is paused: \x1b[2J")
        view.campaign(RETRYING)
    drawn = terminal.getvalue()
    assert "campaign news is paused: \\x1b[2J" in drawn
    assert "30 retries left" in drawn
