"""The side file that says which rows were not taken, and why: CSV with line, reason and the row as it stood.

Invariants
- The file exists only if a row was rejected.
- It is as many lines long as rows were rejected, plus its header, however many that are.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final, TextIO

from actors.loader.parse import Rejected

__all__ = ["RAW_CHARACTERS_MAX", "RejectFile"]

RAW_CHARACTERS_MAX: Final = 4_096  # of one row; whoever wants more has the file and the line


class RejectFile:
    """Collects rejected rows into `path`, or merely counts them if there is no path.

    first   the first row rejected, for messages; None so far
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        self.first: Rejected | None = None
        if path is not None:
            path.unlink(missing_ok=True)  # of an earlier try

    @property
    def path(self) -> str | None:
        """Where the rows are, None if none was rejected or none is kept."""
        return str(self._path) if self._file is not None else None

    def add(self, rows: list[Rejected]) -> None:
        """Append rows. Raises OSError."""
        if self.first is None:
            self.first = rows[0]
        if self._path is None:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("x", encoding="utf-8", newline="")
            self._path.chmod(0o600)
            csv.writer(self._file).writerow(("line", "reason", "row"))
        csv.writer(self._file).writerows(
            (row.line, row.reason, row.raw[: 4 * RAW_CHARACTERS_MAX].decode(errors="replace")[:RAW_CHARACTERS_MAX])
            for row in rows
        )

    def close(self) -> None:
        """Write what is buffered. Raises OSError."""
        if self._file is not None:
            self._file.close()
