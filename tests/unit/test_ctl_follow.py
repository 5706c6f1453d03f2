"""How the command line follows a campaign: what it tells, and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from broker.contract.errors import EcmError
from ctl.client import Client
from ctl.follow import end_of_job, follow_campaign

BASE: dict[str, Any] = {"id": 7, "name": "news", "state": "running", "reason": None}


class Answers:
    """A client whose engine answers with one map after the other, the last one for ever."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def request(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((op, args))
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    @property
    def client(self) -> Client:
        return cast("Client", self)


class Seen:
    """A view that remembers."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.told: list[str] = []
        self.progress: list[dict[str, Any]] = []

    def campaign(self, campaign: Mapping[str, Any]) -> None:
        self.states.append(campaign["state"])

    def job(self, progress: Mapping[str, Any]) -> None:
        self.progress.append(dict(progress))

    def tell(self, text: str) -> None:
        self.told.append(text)


def state(name: str, **more: Any) -> dict[str, Any]:
    return BASE | {"state": name} | more


def reason(message: str, hint: str | None = None) -> dict[str, Any]:
    return {"code": "paused", "message": message, "hint": hint, "since": None}


def test_following_ends_with_the_campaign() -> None:
    """Every look asks for the campaign; the last object is the result."""
    answers, seen = Answers(state("preparing"), state("running"), state("finished")), Seen()
    assert follow_campaign(answers.client, 7, seen)["state"] == "finished"
    assert seen.states == ["preparing", "running", "finished"]
    assert answers.asked == [("campaign.show", {"campaign": 7})] * 3


def test_following_the_checks_ends_when_they_have_passed() -> None:
    """With `checked_only` a campaign that runs, or waits, is enough."""
    answers = Answers(state("preparing"), state("waiting", reason=reason("relay down")))
    assert follow_campaign(answers.client, 7, Seen(), checked_only=True)["state"] == "waiting"


def test_a_pause_is_told_once_and_waited_out() -> None:
    """Its reason and what to do are told when it begins, and that it is over when it is."""
    paused = state("paused", reason=reason("paused by the operator", "ctl campaign resume 7"))
    waits = state("waiting", reason=reason("relay `default` is down"))
    seen = Seen()
    follow_campaign(Answers(paused, paused, waits, waits, state("running"), state("finished")).client, 7, seen)
    assert seen.told == [
        "campaign news is paused: paused by the operator (ctl campaign resume 7)",
        "campaign news waits: relay `default` is down",
        "campaign news goes on",
    ]


def test_failed_checks_are_raised_with_their_place() -> None:
    """A campaign that is a draft again says why, as the checks said it."""
    why = {"code": "no_header", "message": "no header", "hint": "add one", "file": "/a/b.csv", "line": 1, "column": 1}
    answers = Answers(state("preparing"), state("draft", reason={**why, "since": "2026-11-24T10:28:13.123Z"}))
    with pytest.raises(EcmError) as caught:
        follow_campaign(answers.client, 7, Seen())
    assert caught.value.text() == "error: /a/b.csv:1:1: no header\nhint: add one"


def test_a_draft_is_nothing_to_wait_for() -> None:
    """Somebody who waits for a draft is told how to launch it."""
    with pytest.raises(EcmError) as caught:
        follow_campaign(Answers(state("draft")).client, 7, Seen())
    assert (caught.value.code, caught.value.hint) == ("wrong_state", "`ctl campaign launch news` launches it")


def test_time_over_is_an_error_of_its_own() -> None:
    """Exit status 4, and how to wait on."""
    with pytest.raises(EcmError) as caught:
        follow_campaign(Answers(state("running")).client, 7, Seen(), within_s=0.05)
    assert caught.value.exit == 4
    assert caught.value.text() == (
        "error: campaign `news` is still running\nhint: it goes on; `ctl campaign wait news` waits for its end"
    )


def test_a_job_is_followed_to_its_result() -> None:
    """Progress is shown, the result returned; a failure is raised."""
    running = {"state": "running", "progress": {"rows": 5}, "result": None, "error": None}
    seen = Seen()
    done = running | {"state": "done", "result": {"rows": 9}}
    assert end_of_job(Answers(running, done).client, 3, seen) == {"rows": 9}
    assert seen.progress == [{"rows": 5}]
    failed = running | {"state": "failed", "error": EcmError("not_utf8", "not UTF-8").to_map()}
    with pytest.raises(EcmError, match="not UTF-8"):
        end_of_job(Answers(failed).client, 3, seen)
