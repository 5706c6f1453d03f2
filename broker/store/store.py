"""`store.db`, opened: what campaigns, shards, jobs and suppressions are kept in.

The functions beside this module take a `Store` first and are synchronous; the broker calls them in its one store
thread and never on its loop. They answer with frozen rows and raise `EcmError`, never the driver's errors.

Invariants
- Only the broker opens a `Store`. The loader reads suppressions through the read-only helpers of `suppression`.
- One function is one transaction: after a crash its change is there as a whole, or not at all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DatabaseError

from broker.store.database import explained, open_database

__all__ = ["Store", "driver"]


@dataclass(frozen=True, slots=True)
class Store:
    """The open file. Used by one thread at a time."""

    path: Path
    engine: Engine

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open or make the file at `path` and bring it to the newest revision. Raises EcmError."""
        return cls(path, open_database(path, "store"))

    def close(self) -> None:
        """Close the file; SQLite then moves its log into it."""
        self.engine.dispose()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction, committed at the end, undone if an exception leaves the block.

        Raises EcmError `disk_full`, `state_unwritable` or `io_failed` where the driver raised its own.
        """
        try:
            with self.engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            raise explained(self.path, error.orig) from error
        except sqlite3.Error as error:  # from the bulk paths, which use the driver's connection
            raise explained(self.path, error) from error


def driver(connection: Connection) -> sqlite3.Connection:
    """The driver's connection under `connection`, in the same transaction: for paths where a row may cost 1 us."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw
