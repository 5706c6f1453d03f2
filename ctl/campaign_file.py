"""A campaign file and what it names, as a request carries them: templates by content, recipients by absolute path.

Reads files only; what the keys mean, and whether they may stand there, the engine judges. What it cannot see, since it
reads none of these files, is found here: a directory where a template is named, a template that may not be read.
"""

import os
from pathlib import Path
from typing import Any

from broker.contract import codec
from broker.contract.errors import EcmError
from broker.contract.tomlfile import Places, load_toml

__all__ = ["CampaignFile"]

ATTACHED_KEYS = ("html", "text")

# Errors whose `field` is a column of the recipients, not a key of the campaign file.
_ABOUT_RECIPIENTS = ("missing_field", "bad_header", "duplicate_column", "no_address_column")


class CampaignFile:
    """One campaign file, read.

    args      arguments of `campaign.create`, `campaign.send` and `campaign.check`
    document  what the file says, {} if it is not TOML
    problems  what is wrong with the files it names
    Raises EcmError if the campaign file itself cannot be read.
    """

    def __init__(self, path: str, recipients: str | None = None) -> None:
        """recipients: a file to take in place of the audience that the campaign file names."""
        self.path = path
        self.text = _read(Path(path), path).decode("utf-8")
        self.problems: list[EcmError] = []
        try:
            self.document: dict[str, Any] = load_toml(self.text, path)
        except EcmError:
            self.document = {}  # the engine says what is wrong with it, in the same words for every client
        self._places: Places | None = None
        self.args: dict[str, Any] = {"text": self.text, "file": _plain(path), "attached": self._attached()}
        found = self._recipients(recipients)
        if found is not None:
            self.args["recipients"] = found

    @property
    def name(self) -> str | None:
        """The campaign's name, None if there is none that could be one."""
        name = self.document.get("name")
        return name if isinstance(name, str) and name and not name.isdigit() else None

    def check(self) -> None:
        """Raise the first problem, if there is one."""
        if self.problems:
            raise self.problems[0]

    def placed(self, error: EcmError) -> EcmError:
        """The same error with its place in this file, if it is about one of its keys."""
        if error.file is None and error.field and error.code not in _ABOUT_RECIPIENTS:
            key = tuple(error.field.split("."))
            if key in self.places:
                error.file = self.path
                error.line, error.column = self.places.value(key)
        return error

    @property
    def places(self) -> Places:
        """Where each key stands."""
        if self._places is None:
            self._places = Places(self.text)
        return self._places

    def _attached(self) -> dict[str, str]:
        attached = {}
        for key in ATTACHED_KEYS:
            named = self.document.get(key)
            if not isinstance(named, str) or not named or "\0" in named:
                continue  # the engine refuses it
            try:
                attached[named] = _read(Path(self.path).parent / named, named).decode("utf-8-sig")
            except EcmError as error:
                if error.code != "file_missing":  # that the engine finds too, and tells with all other problems
                    self._problem(key, named, error)
        return attached

    def _recipients(self, given: str | None) -> str | None:
        """The absolute path of the recipients; None if the file names none, or an audience beside it."""
        if given is not None:
            path = os.path.abspath(given)  # noqa: PTH100 - resolve() would hide the links that people named
            error = _absent(path)
            if error is not None:
                error.file = given
                self.problems.append(error)
            return path
        named = self.document.get("recipients")
        if not isinstance(named, str) or not named.strip() or "\0" in named or "audience" in self.document:
            return None
        path = os.path.abspath(Path(self.path).parent / named)  # noqa: PTH100
        error = _absent(path)
        if error is not None:
            self._problem("recipients", named, error)
        return path

    def _problem(self, key: str, named: str, error: EcmError) -> None:
        error.message = f"`{key}`: {error.message}: {named}"
        error.file, error.field = self.path, key
        error.line, error.column = self.places.value((key,))
        self.problems.append(error)


def _plain(path: str) -> str:
    """A path that a message can carry, whatever bytes it has."""
    return path.encode("utf-8", "backslashreplace").decode()


def _absent(path: str) -> EcmError | None:
    """What is wrong with a file that only the engine will read. That we may not look says nothing about the engine."""
    try:
        directory = os.path.isdir(path)  # noqa: PTH112
        os.stat(path)  # noqa: PTH116
    except PermissionError:
        return None
    except (FileNotFoundError, NotADirectoryError):
        return EcmError("file_missing", "no such file")
    except OSError as error:
        return EcmError("file_unreadable", f"cannot be read: {error.strerror}")
    return EcmError("file_unreadable", "a directory, where a file is needed") if directory else None


def _read(path: Path, named: str) -> bytes:
    """The bytes of a text file in UTF-8. Raises EcmError: file_missing, file_unreadable, not_utf8."""
    try:
        with path.open("rb") as file:
            data = file.read(codec.MESSAGE_BYTES_MAX + 1)
        data.decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise EcmError("file_missing", "no such file", file=named) from None
    except IsADirectoryError:
        raise EcmError("file_unreadable", "a directory, where a file is needed", file=named) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise EcmError("not_utf8", "not UTF-8 text", file=named, line=line, hint="save it as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EcmError("file_unreadable", f"cannot be read: {reason}", file=named) from None
    if len(data) > codec.MESSAGE_BYTES_MAX:
        raise EcmError("file_unreadable", f"larger than {codec.MESSAGE_BYTES_MAX >> 20} MB", file=named)
    return data
