"""docs/protocol.md says what the code says."""

import subprocess
import sys
from pathlib import Path

import pytest

from broker.contract.errors import CODES
from broker.contract.messages import OPERATIONS, TOPICS
from broker.contract.protocol_page import PAGE, written


def test_the_page_is_as_the_code_has_it() -> None:
    """The generated parts are up to date; `--write` brings them there."""
    assert written(PAGE.read_text()) == PAGE.read_text()


def test_every_operation_argument_code_and_topic_is_on_the_page() -> None:
    """Nobody can call what is not described."""
    page = PAGE.read_text()
    for name, operation in OPERATIONS.items():
        section = page.split(f"\n### {name}\n")[1].split("\n### ")[0]
        assert operation.summary in section
        assert all(f"| `{argument}` |" in section for argument in operation.args.model_fields)
    assert all(f"| `{code}` |" in page for code in CODES)
    assert all(f"| `{topic}.` |" in page for topic in TOPICS)


def test_every_argument_has_a_description() -> None:
    """The description is what an error says the argument must be, so there is always one."""
    bare = [
        f"{name}: {argument}"
        for name, operation in OPERATIONS.items()
        for argument, field in operation.args.model_fields.items()
        if not field.description
    ]
    assert bare == []


def test_a_stale_page_is_found_and_written(tmp_path: Path) -> None:
    """`--check` fails for a page that says something else, and passes after `--write`; prose is left alone."""
    page = tmp_path / "protocol.md"
    page.write_text(PAGE.read_text().replace("### engine.stop", "### engine.halt") + "\nOur own words.\n")
    command = [sys.executable, "-m", "broker.contract.protocol_page"]
    statuses = [
        subprocess.run([*command, how, page], check=False).returncode for how in ("--check", "--write", "--check")
    ]
    assert statuses == [1, 0, 0]
    assert page.read_text() == PAGE.read_text() + "\nOur own words.\n"


@pytest.mark.parametrize("page", ["", "<!-- begin nonsense -->\n<!-- end nonsense -->"])
def test_a_page_without_its_places_is_refused(page: str) -> None:
    """A part that has no place, or a place without a part, is an error."""
    with pytest.raises(ValueError, match="part"):
        written(page)
