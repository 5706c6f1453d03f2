"""The log of every process of the engine: one line an event, logfmt, to stderr.

`ctl start` points stderr at STATE/log/engine.log. A line says when, how grave, what (past tense) and which process;
the fields of the event follow. Written with one `write`, so lines of several processes never mix. The standard
library's `logging` has no fields, and the well-known library that has them costs 50 ms in each of five processes
whose start a user waits for.
"""

import os
import time
import traceback
from typing import Any, Final

__all__ = ["Log", "log", "open_log"]

_STDERR: Final = 2
_BARE: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-:/+@%,~")


class Log:
    """Writes events. Each takes its fields as keywords; `exc_info` adds an exception with its stack."""

    def __init__(self) -> None:
        self._process = "-"

    def open(self, process: str) -> None:
        """Say which process this is: `sender 3`."""
        self._process = process

    def info(self, event: str, **fields: Any) -> None:
        """Something went as it should."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something an operator may want to look at; nothing is lost and nothing waits."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something broke, or waits until somebody acts."""
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        now = time.time()
        at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
        head = {"time": at, "level": level, "event": event, "process": self._process}
        error = fields.pop("exc_info", None)
        if isinstance(error, BaseException):
            fields["exception"] = "".join(traceback.format_exception(error))
        line = " ".join(f"{name}={_value(value)}" for name, value in {**head, **fields}.items())
        try:
            os.write(_STDERR, (line + "\n").encode("utf-8", "backslashreplace"))
        except OSError:
            return  # a full disk or a closed terminal must not end the engine; the event is lost, nothing else


def _value(value: Any) -> str:
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if text and _BARE.issuperset(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


log: Final = Log()
"""The log of this process."""


def open_log(process: str) -> Log:
    """Name this process in its log."""
    log.open(process)
    return log
