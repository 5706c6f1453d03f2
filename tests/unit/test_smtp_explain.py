"""`ctl explain` and the generated tables: the same tables as the engine's, in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.smtp import explain, pages

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


def test_an_accepted_reply_concludes_at_the_dot_only(capsys: pytest.CaptureFixture[str]) -> None:
    """250 to MAIL goes on; 250 to the message is the end of it."""
    assert explain.main(["250 2.0.0 Ok"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "250 2.0.0 Ok",
        "about nothing: all is well",
        "in answer to the message: sent (none), connection kept",
        "the relay is used as before",
    ]


def test_what_is_no_reply_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, one line, and how to ask."""
    assert explain.main(["hello"]) == 2
    assert capsys.readouterr().err == (
        "error: no SMTP reply: it begins with a code from 200 to 599\n"
        'hint: quote the server\'s words: ctl explain "550 5.1.1 User unknown"\n'
    )
    assert explain.main(["--json", "hello"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "invalid_value"
