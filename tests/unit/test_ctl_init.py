"""What `ctl init` writes, and that it never overwrites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broker.contract.campaign import parse_campaign_all
from broker.contract.settings import load_settings
from ctl.commands.init import FILES
from ctl.main import run

Printed = pytest.CaptureFixture[str]


def test_init_writes_five_files_and_says_what_is_next(tmp_path: Path, capsys: Printed) -> None:
    """Into a directory that it makes; three steps, on stderr."""
    place = tmp_path / "a" / "news"
    assert run(["init", str(place)]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sorted(path.name for path in place.iterdir()) == sorted(FILES)
    first, *steps = printed.err.splitlines()
    assert first == "wrote ecm.toml, campaign.toml, message.html, message.txt and recipients.csv"
    assert [step[:2] for step in steps] == ["1.", "2.", "3."]
    assert f"cd {place} && ctl start && ctl send campaign.toml" in steps[1]


def test_init_answers_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    """Directory and files; the working directory if none is named."""
    monkeypatch.chdir(tmp_path)
    assert run(["init", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"directory": str(tmp_path), "files": list(FILES)}
    assert printed.err == ""


@pytest.mark.parametrize("name", FILES)
def test_init_never_overwrites(name: str, tmp_path: Path, capsys: Printed) -> None:
    """One file that is there is enough: it is named, and nothing at all is written."""
    (tmp_path / name).write_text("mine")
    assert run(["init", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / name}: the file is already there\n"
        "hint: ctl init never overwrites: name another directory, or move the file away\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_init_does_not_write_through_a_link(tmp_path: Path) -> None:
    """A link that leads nowhere is in the way like a file."""
    (tmp_path / "ecm.toml").symlink_to(tmp_path / "elsewhere")
    assert run(["init", str(tmp_path)]) == 2
    assert not (tmp_path / "elsewhere").exists()


def test_init_says_where_it_cannot_write(tmp_path: Path, capsys: Printed) -> None:
    """A file in the place of the directory."""
    (tmp_path / "news").write_text("")
    assert run(["init", str(tmp_path / "news")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'news'}: cannot be written: ")


def test_what_init_writes_is_valid(tmp_path: Path) -> None:
    """The settings load, the campaign has no problem, people have names of many scripts."""
    assert run(["init", str(tmp_path)]) == 0
    assert load_settings(tmp_path / "ecm.toml").relays["default"].port == 2525
    text = (tmp_path / "campaign.toml").read_text()
    attached = {name: (tmp_path / name).read_text() for name in ("message.html", "message.txt")}
    assert parse_campaign_all(text, "campaign.toml", attached) == []
    people = (tmp_path / "recipients.csv").read_text()
    assert people.startswith("email,first_name,last_name,city,member\n")
    assert all(name in people for name in ("Zoë", "Łukasz", "佐藤", "Ελένη"))
