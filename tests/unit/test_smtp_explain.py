"""`ctl explain` and the generated tables: the same tables as the engine's, in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.smtp import explain, pages
from actors.smtp.rules import MEANING, About
from broker.contract.errors import EcmError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "smtp.md"


def test_the_page_shows_what_the_code_does() -> None:
    """The tables of docs/smtp.md are those the code makes now."""
    assert pages.main([str(PAGE), "--check"]) == 0


def test_a_stale_page_is_noticed_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check changes nothing and says what to run; without it the page is filled."""
    page = tmp_path / "smtp.md"
    stale = PAGE.read_text().replace("uncertain; close", "sent")
    page.write_text(stale)
    assert pages.main([str(page), "--check"]) == 1
    assert "python -m actors.smtp.pages" in capsys.readouterr().err
    assert page.read_text() == stale
    assert pages.main([str(page)]) == 0
    assert page.read_text() == PAGE.read_text()
    with pytest.raises(ValueError, match="no place for"):
        pages.fill("# an empty page\n")


def test_a_reply_is_explained_as_it_would_be_judged(capsys: pytest.CaptureFixture[str]) -> None:
    """The class, the rule's own example, and a verdict for each stage."""
    assert explain.main(["554 5.7.1 Client host [192.0.2.7] blocked using bl.spamcop.net"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "554 5.7.1 Client host [192.0.2.7] blocked using bl.spamcop.net"
    assert said[1].startswith("about us: ")
    assert said[2].endswith("blocked using zen.spamhaus.org")
    assert "in answer to RCPT       : deferred (sender), connection kept" in said
    assert said[-1] == "the relay is slowed down, and paused when nearly all of its replies are like this"


def test_a_reply_is_explained_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """--json: one document with every stage."""
    assert explain.main(["--json", "550", "5.1.1", "User", "unknown"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["code"], found["enhanced"], found["about"]) == (550, "5.1.1", "recipient")
    assert [at["state"] for at in found["stages"]] == ["deferred", "bounced", "bounced", "bounced"]
    assert found["relay"]["becomes"] == "unchanged"
    assert explain.explain("503 5.5.1 Error: nested MAIL command")["relay"]["becomes"] == "stepped_down"


def test_an_accepted_reply_is_the_end_at_the_dot(capsys: pytest.CaptureFixture[str]) -> None:
    """250 to MAIL goes on; 250 to the message is the end of it; to DATA it is an answer too many."""
    assert explain.main(["250 2.0.0 Ok"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "250 2.0.0 Ok",
        "about nothing: all is well",
        "in answer to DATA       : deferred (other), tried again at once, connection closed, the next one a mode lower",
        "in answer to the message: sent (none), connection kept",
        "the relay is used as before",
    ]


def test_a_354_is_hoped_for_by_data_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Anywhere else it shows lost step; to the dot nobody can know whether the message was taken."""
    assert explain.main(["354 go"]) == 0
    step_down = "tried again at once, connection closed, the next one a mode lower"
    assert capsys.readouterr().out.splitlines() == [
        "354 go",
        f"about {MEANING[About.STEP]}; unless it answers DATA",
        f"in answer to MAIL       : deferred (other), {step_down}",
        f"in answer to RCPT       : deferred (other), {step_down}",
        "in answer to the message: uncertain (other), connection closed, the next one a mode lower",
        "the relay is spoken to one mode lower for a while; unless it answered DATA",
    ]
    found = explain.explain("334 go")
    assert [at["state"] for at in found["stages"]] == ["deferred", "deferred", "deferred", "uncertain"]
    assert found["relay"] == {"becomes": "stepped_down", "meaning": "spoken to one mode lower for a while"}


def test_half_a_reply_is_refused() -> None:
    """A line with a hyphen behind its code says that another follows; a log may have joined the lines."""
    for half in ("550-foo", "550-foo\n550-bar", "550-5.1.1 foo"):
        with pytest.raises(EcmError, match="the reply goes on") as raised:
            explain.explain(half)
        assert raised.value.exit == 2
    for whole in ("550-foo\n550 bar", "550-5.1.1 foo 550 5.1.1 bar", "550-foo\n550", "550 a-b", "550 550-foo"):
        assert explain.explain(whole)["code"] == 550


def test_what_is_no_reply_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, one line, and how to ask."""
    assert explain.main(["hello"]) == 2
    assert capsys.readouterr().err == (
        "error: no SMTP reply: it begins with a code from 200 to 599\n"
        'hint: quote the server\'s words: ctl explain "550 5.1.1 User unknown"\n'
    )
    assert explain.main(["--json", "hello"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "invalid_value"
