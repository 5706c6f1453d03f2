"""The error a user sees."""

from __future__ import annotations

import pickle

import pytest

from broker.contract.errors import CODES, EcmError


def test_text_is_place_message_and_hint() -> None:
    """The text is one line with its place and one with the hint; what is unknown is left out."""
    error = EcmError(
        "no_address_column",
        "no address column (`email`, `e_mail`, `email_address`)",
        file="recipients.csv",
        line=1,
        column=1,
        hint='name it with `email_column = "..."` in the campaign file',
    )
    assert error.text() == (
        "error: recipients.csv:1:1: no address column (`email`, `e_mail`, `email_address`)\n"
        'hint: name it with `email_column = "..."` in the campaign file'
    )
    assert EcmError("busy", "too much to do").text() == "error: too much to do"
    assert EcmError("file_empty", "nothing in it", file="a.csv").text() == "error: a.csv: nothing in it"


def test_text_never_exceeds_its_lines_nor_drives_the_terminal() -> None:
    """Line ends and escape sequences from a user's file are written out."""
    error = EcmError("invalid_value", "bad: a\nb\r\x1b[31m\u2028c", hint="d\ne")
    assert error.text() == "error: bad: a\\nb\\r\\x1b[31m\\x2028c\nhint: d\\ne"
    assert len(error.text().splitlines()) == 2


@pytest.mark.parametrize("code", CODES)
def test_every_code_travels_and_keeps_its_exit_status(code: str) -> None:
    """An error is the same after the protocol's map and after a pickle, whatever its code."""
    error = EcmError(code, "message", file="f", line=1, column=2, field="a.b", count=3, hint="h")
    for copy in (EcmError.from_map(error.to_map()), pickle.loads(pickle.dumps(error))):
        assert copy.to_map() == error.to_map()
        assert copy.text() == error.text()
    assert error.to_map()["exit"] == error.exit == CODES[code][0]
    assert error.exit in (1, 2, 3, 4)


def test_error_of_a_newer_engine_is_still_an_error() -> None:
    """A code that this version lacks becomes `internal` and keeps its message."""
    error = EcmError.from_map({"code": "from_the_future", "message": "m"})
    assert (error.code, error.message, error.exit) == ("internal", "m", 1)
