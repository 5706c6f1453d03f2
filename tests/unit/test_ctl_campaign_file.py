"""What the command line makes of a campaign file before the engine sees it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker.contract.errors import EcmError
from ctl.campaign_file import CampaignFile

TEXT = 'name = "news"\nhtml = "message.html"\ntext = "message.txt"\nrecipients = "people.csv"\nrelay = "main"\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a campaign in `mail/`, which is not the working directory's own."""
    monkeypatch.chdir(tmp_path)
    mail = tmp_path / "mail"
    mail.mkdir()
    (mail / "campaign.toml").write_text(TEXT)
    (mail / "message.html").write_text("<p>Zoë</p>")
    (mail / "message.txt").write_bytes(b"\xef\xbb\xbfHello")
    (mail / "people.csv").write_text("email\n")
    return mail


def test_templates_go_by_content_and_recipients_by_absolute_path(here: Path) -> None:
    """Paths are relative to the campaign file, whatever the working directory; a byte order mark is not content."""
    found = CampaignFile("mail/campaign.toml")
    found.check()
    assert found.args == {
        "text": TEXT,
        "file": "mail/campaign.toml",
        "attached": {"message.html": "<p>Zoë</p>", "message.txt": "Hello"},
        "recipients": str(here / "people.csv"),
    }
    assert found.name == "news"


def test_recipients_can_be_overridden(here: Path) -> None:
    """`--recipients` is relative to the working directory, and need not be in the file."""
    Path("others.csv").write_text("email\n")
    (here / "campaign.toml").write_text('name = "news"\naudience = "all"\n')
    found = CampaignFile("mail/campaign.toml", "others.csv")
    assert found.args["recipients"] == str(here.parent / "others.csv")


def test_two_audiences_are_left_for_the_engine_to_refuse(here: Path) -> None:
    """With `recipients` and `audience` in the file nothing is sent along that would hide one of them."""
    (here / "campaign.toml").write_text(TEXT + 'audience = "all"\n')
    assert "recipients" not in CampaignFile("mail/campaign.toml").args


def test_a_missing_template_is_left_for_the_engine_to_name(here: Path) -> None:
    """The engine tells it with all other problems; it is only not attached."""
    (here / "message.html").unlink()
    found = CampaignFile("mail/campaign.toml")
    assert found.problems == []
    assert "message.html" not in found.args["attached"]


def test_a_directory_as_template_is_an_error_with_its_place(here: Path) -> None:
    """The error names the campaign file, line and column of the value."""
    (here / "message.html").unlink()
    (here / "message.html").mkdir()
    with pytest.raises(EcmError) as caught:
        CampaignFile("mail/campaign.toml").check()
    assert caught.value.text() == (
        "error: mail/campaign.toml:2:8: `html`: a directory, where a file is needed: message.html"
    )
    assert caught.value.exit == 2


def test_a_template_in_another_encoding_is_an_error_with_a_hint(here: Path) -> None:
    """Latin-1 is not UTF-8."""
    (here / "message.txt").write_bytes("Grüße\n".encode("latin-1"))
    with pytest.raises(EcmError) as caught:
        CampaignFile("mail/campaign.toml").check()
    assert caught.value.text() == (
        "error: mail/campaign.toml:3:8: `text`: not UTF-8 text: message.txt\nhint: save it as UTF-8"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_template_that_may_not_be_read_is_an_error(here: Path) -> None:
    """The reason is told."""
    (here / "message.txt").chmod(0)
    with pytest.raises(EcmError, match=r"cannot be read: Permission denied: message\.txt"):
        CampaignFile("mail/campaign.toml").check()


def test_recipients_that_are_not_there_are_an_error_with_its_place(here: Path) -> None:
    """Before the engine is asked to read them."""
    (here / "people.csv").unlink()
    with pytest.raises(EcmError) as caught:
        CampaignFile("mail/campaign.toml").check()
    assert caught.value.text() == "error: mail/campaign.toml:4:14: `recipients`: no such file: people.csv"


def test_a_campaign_file_that_is_none_is_an_error(here: Path) -> None:
    """Missing, a directory, binary: one line each, exit status 2."""
    (here / "binary.toml").write_bytes(b'name = "a"\n\xff\xfe')
    for path, text in (
        ("mail/none.toml", "error: mail/none.toml: no such file"),
        ("mail", "error: mail: a directory, where a file is needed"),
        ("mail/campaign.toml/x", "error: mail/campaign.toml/x: no such file"),
        ("mail/binary.toml", "error: mail/binary.toml:2: not UTF-8 text\nhint: save it as UTF-8"),
        ("a\0b", "error: a\\x00b: cannot be read: embedded null byte"),
    ):
        with pytest.raises(EcmError) as caught:
            CampaignFile(path)
        assert caught.value.text() == text
        assert caught.value.exit == 2


def test_what_is_not_toml_is_left_for_the_engine(here: Path) -> None:
    """The text goes as it is: one place knows how to say what is wrong with it."""
    (here / "campaign.toml").write_text("name = news\n")
    found = CampaignFile("mail/campaign.toml")
    assert found.args == {"text": "name = news\n", "file": "mail/campaign.toml", "attached": {}}
    assert found.name is None


def test_an_error_about_a_key_gets_its_place(here: Path) -> None:
    """The engine knows the key, this side the text; an error about a column of the recipients stays without."""
    found = CampaignFile("mail/campaign.toml")
    placed = found.placed(EcmError("unknown_relay", "no relay", field="relay"))
    assert (placed.file, placed.line, placed.column) == ("mail/campaign.toml", 5, 9)
    assert found.placed(EcmError("missing_field", "no field `name`", field="name")).file is None
    assert found.placed(EcmError("internal", "a fault")).file is None
