"""The one error a user ever sees, and the closed list of its codes.

May import nothing: every command of `ctl` loads this module, and so does every process of the engine.

Invariants
- A code is classed where it is raised; its exit status stands in `CODES` and nowhere else.
- The text is at most four lines whatever the message holds: control characters are written out, so a name
  from a file can neither break the line nor reach the terminal as an escape sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["CODES", "HINTS", "EcmError", "plainly"]

CODES: dict[str, tuple[int, str]] = {
    # What the user wrote is wrong: exit 2.
    "bad_request": (2, "a request the engine cannot read"),
    "unknown_operation": (2, "an operation this engine does not have"),
    "invalid_value": (2, "a value outside what its field allows"),
    "unknown_key": (2, "a key that does not exist"),
    "missing_key": (2, "a key that must be there is not"),
    "invalid_toml": (2, "a file that is not TOML"),
    "settings_invalid": (2, "settings that cannot work together"),
    "no_unsubscribe": (2, "marketing mail without a way to unsubscribe"),
    "bad_header": (2, "a header that would break the message"),
    "file_missing": (2, "a file that does not exist"),
    "file_unreadable": (2, "a file that cannot be read"),
    "file_empty": (2, "a file with nothing in it"),
    "file_binary": (2, "a file that is not text"),
    "not_utf8": (2, "text that is not UTF-8"),
    "no_header": (2, "a recipients file without a header line"),
    "no_address_column": (2, "a recipients file without a column of addresses"),
    "duplicate_column": (2, "two columns that get the same name"),
    "template_syntax": (2, "a template that cannot be compiled"),
    "missing_field": (2, "a template uses a field that recipients lack"),
    "unknown_relay": (2, "a relay or pool that is not declared"),
    "unknown_campaign": (2, "a campaign that does not exist"),
    "unknown_list": (2, "a list that does not exist"),
    "unknown_job": (2, "a job that does not exist"),
    "unknown_recipient": (2, "a recipient nobody knows"),
    "campaign_exists": (2, "a name another campaign has"),
    "campaign_ended": (2, "a campaign that has already ended"),
    "wrong_state": (2, "not possible in the state the campaign is in"),
    "no_recipients": (2, "nobody left to mail"),
    "from_not_allowed": (2, "a From domain the relay does not allow"),
    # The world is wrong: exit 1.
    "relay_unreachable": (1, "a relay that cannot be reached"),
    "relay_refused": (1, "a relay that refused us"),
    "disk_full": (1, "no space left on the disk"),
    "state_unwritable": (1, "a state directory that cannot be written"),
    "already_running": (1, "another engine runs on this state directory"),
    "start_failed": (1, "the engine could not start"),
    "too_many_rejected": (1, "more rows of a file were rejected than was allowed"),
    "campaign_cancelled": (1, "the campaign waited for was cancelled"),
    "discrepancy": (1, "an account that does not add up"),
    "io_failed": (1, "reading or writing failed"),
    "stopping": (1, "the engine is stopping"),
    "internal": (1, "a fault of the engine itself"),
    "path_too_long": (1, "socket paths longer than the system allows"),
    "shm_full": (1, "no space left in shared memory"),
    "busy": (1, "the engine has too much to do right now"),
    "sink_failed": (1, "the rehearsal server could not run"),
    "no_engine": (3, "no engine runs on this state directory"),
    "timed_out": (4, "no answer, or no end, in the time allowed"),
}

HINTS: dict[str, str] = {
    "relay_unreachable": "is it running, and are host and port in ecm.toml right?",
    "no_recipients": "the account and the rejects file say where they went",
    "unknown_list": "`ctl list` names them",
    "unknown_campaign": "`ctl campaign list` names them",
    "wrong_state": "`ctl campaign show` says where it stands",
    "disk_full": "free some space and do it again",
    "state_unwritable": "give this user the directory, or name another with --state",
}
"""How to mend, for errors raised without a better word."""

_CONTROL = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160), 0x2028, 0x2029)} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
}


class EcmError(Exception):
    """What is wrong, where, and how to mend it.

    code      a key of `CODES`
    message   one line, no full stop; the offending value last
    file, line, column   place in what the user wrote, counted from 1
    field     the key or column, dotted: `rate.per_second`
    count     how many rows, recipients, ... it concerns
    hint      what to do, one line
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        column: int | None = None,
        field: str | None = None,
        count: int | None = None,
        hint: str | None = None,
    ) -> None:
        assert code in CODES, f"unknown error code: {code}"
        super().__init__(message)
        self.code = code
        self.message = message
        self.file = file
        self.line = line
        self.column = column
        self.field = field
        self.count = count
        self.hint = hint or HINTS.get(code)

    @property
    def exit(self) -> int:
        """Exit status of a command that ends with this error."""
        return CODES[self.code][0]

    def to_map(self) -> dict[str, Any]:
        """The error as the protocol and `--json` carry it; every key present, unknown ones None."""
        return {
            "code": self.code,
            "message": self.message,
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "field": self.field,
            "count": self.count,
            "hint": self.hint,
            "exit": self.exit,
        }

    @classmethod
    def from_map(cls, m: Mapping[str, Any]) -> EcmError:
        """The error of a map made by `to_map`, perhaps by a newer engine: a code we lack becomes `internal`."""
        code = m.get("code")
        return cls(
            code if isinstance(code, str) and code in CODES else "internal",
            str(m.get("message", "an error without a message")),
            file=m.get("file"),
            line=m.get("line"),
            column=m.get("column"),
            field=m.get("field"),
            count=m.get("count"),
            hint=m.get("hint"),
        )

    def text(self) -> str:
        """`error: FILE:LINE:COLUMN: message` and, if there is one, `hint: ...`; no newline at the end."""
        place = ""
        if self.file is not None:
            numbers = "".join(f":{n}" for n in (self.line, self.column) if n is not None)
            place = f"{self.file}{numbers}: "
        lines = [f"error: {place}{self.message}"]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(line.translate(_CONTROL) for line in lines)

    def __reduce__(self) -> tuple[Callable[[Mapping[str, Any]], EcmError], tuple[dict[str, Any]]]:
        return (type(self).from_map, (self.to_map(),))


def plainly(error: Exception) -> str:
    """What an exception says, for people: of one from the system, the file and the system's words, without a number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
