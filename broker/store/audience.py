"""Lists that are kept, and the people in them: `audience.db`.

The loader is the one process that writes the file; `lists` and `show` read it, without a change, from any process.
Rows pass through here a million at a time, so they travel as tuples on the driver's connection, never as objects.

Invariants
- A person is in a list once, by the key of the address (`shm/address.py`).
- A status only moves toward silence: no import turns an unsubscribed person back on, and their fields stay as
  they were.
- A merge may be repeated: the same rows again change nothing. So an import that was interrupted is simply begun again.
- What an import does not name it leaves: fields it lacks keep their values.
- The counts in `lists` change in the transaction that changes the people.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack  # type: ignore[import-untyped, unused-ignore]
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError

from broker.contract.errors import EcmError
from broker.store.audience_merge import (
    ADDRESS_FIELD,
    SUBSCRIBED,
    UNSUBSCRIBED,
    Member,
    Merge,
    Merged,
    Names,
    change_counts,
    shapes_of,
)
from broker.store.database import connect_read_only, explained, open_database

__all__ = [
    "ADDRESS_FIELD",
    "SUBSCRIBED",
    "UNSUBSCRIBED",
    "AudienceStore",
    "ListRow",
    "Member",
    "Merged",
    "Names",
    "Stored",
    "lists",
    "show",
]


MERGE_ROWS: Final = 20_000  # of one transaction: some 100 ms, so an unsubscribe never waits long behind an import
LOG_PAGES: Final = 16_384  # 64 MB of log before it moves into the file: fewer waits for the disk in an import
READ_ROWS: Final = 8_192
CACHE_KIB: Final = 16_384  # of pages, for the inner nodes of a large table
NAME_CHARACTERS_MAX: Final = 100

Stored = tuple[bytes, bytes, bytes, int]  # key, address (UTF-8), packed map of the other fields, number of the shape


@dataclass(frozen=True, slots=True)
class ListRow:
    """A list. fields: every name some subscriber has; times in engine seconds."""

    id: int
    name: str
    fields: list[str]
    subscribed: int
    unsubscribed: int
    created: float
    changed: float

    def to_map(self) -> dict[str, Any]:
        """As operations answer it."""
        return {
            "list": self.name,
            "subscribed": self.subscribed,
            "unsubscribed": self.unsubscribed,
            "fields": self.fields,
            "created": self.created,
            "changed": self.changed,
        }


class AudienceStore:
    """The open file, for the process that writes it. Threads may share it; each call uses a connection of its own."""

    def __init__(self, path: Path, engine: Engine) -> None:
        self._path = path
        self._engine = engine

    @classmethod
    def open(cls, path: Path) -> AudienceStore:
        """Open or make the file and bring it to the newest revision. Raises EcmError."""
        return cls(path, open_database(path, "audience"))

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    def lists(self) -> list[ListRow]:
        """All lists, by name."""
        with self._connect() as connection:
            return _lists(connection)

    def get(self, name: str) -> ListRow:
        """A list. Raises EcmError unknown_list."""
        return _one(self.lists(), name)

    def find(self, name: str) -> ListRow | None:
        """A list, None if there is none of that name."""
        return next((row for row in self.lists() if row.name == name), None)

    def ensure(self, name: str, now_s: float) -> ListRow:
        """The list of that name, made if need be. Raises EcmError invalid_value for a name that is none."""
        if not name.strip() or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
            raise EcmError("invalid_value", f"not a name for a list: {name!r}", field="list")
        with self._connect() as connection, _transaction(connection):
            connection.execute(
                "INSERT OR IGNORE INTO lists (name, fields, subscribed, unsubscribed, created, changed)"
                " VALUES (?, ?, 0, 0, ?, ?)",
                (name, msgpack.packb([ADDRESS_FIELD]), now_s, now_s),
            )
        return self.get(name)

    def shapes(self, list_id: int) -> dict[int, Names]:
        """The sets of names that occur in a list, by number."""
        with self._connect() as connection:
            return shapes_of(connection, list_id)

    def merge(
        self,
        list_id: int | None,
        members: Sequence[Member],
        names: Sequence[Names],
        now_s: float,
        *,
        dry_run: bool = False,
    ) -> Merged:
        """Put members into a list, each key once and in rising order of keys.

        list_id   None: a list that does not exist yet, to which everybody would be new (dry run)
        names     sets of names, the address first, that members refer to by number
        Raises EcmError disk_full, io_failed; then the batches before the one that failed stay.
        """
        merged = Merged()
        if list_id is None:
            merged.added = len(members)
            return merged
        for first in range(0, len(members), MERGE_ROWS):
            batch = members[first : first + MERGE_ROWS]
            with self._connect() as connection, _transaction(connection):
                Merge(connection, list_id, names, now_s, dry_run, merged).run(batch)
        return merged

    def read(self, list_id: int) -> Iterator[list[Stored]]:
        """The subscribed members by key, some thousand at a time, as of the moment of the first."""
        with self._connect() as connection, _transaction(connection, "DEFERRED"):  # a writer need not wait for it
            cursor = connection.execute(
                "SELECT key, CAST(address AS BLOB), fields, shape FROM subscribers"
                " WHERE list = ? AND status = ? ORDER BY key",
                (list_id, SUBSCRIBED),
            )
            while rows := cursor.fetchmany(READ_ROWS):
                yield rows

    def iterate(self, list_id: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """The subscribed members: address, and all fields, the address among them."""
        for rows in self.read(list_id):
            for _key, address, fields, _shape in rows:
                text = address.decode()
                yield text, {ADDRESS_FIELD: text, **msgpack.unpackb(fields)}

    def unsubscribe(self, list_id: int, key: bytes, now_s: float) -> bool:
        """Take somebody off a list; whether that changed anything."""
        with self._connect() as connection, _transaction(connection):
            changed = connection.execute(
                "UPDATE subscribers SET status = ?, changed = ? WHERE list = ? AND key = ? AND status = ?",
                (UNSUBSCRIBED, now_s, list_id, key, SUBSCRIBED),
            ).rowcount
            change_counts(connection, list_id, -changed, changed, now_s)
        return changed > 0

    def knows(self, list_id: int, key: bytes) -> bool:
        """Whether somebody of that key is in the list, subscribed or not."""
        with self._connect() as connection:
            statement = "SELECT 1 FROM subscribers WHERE list = ? AND key = ?"
            return connection.execute(statement, (list_id, key)).fetchone() is not None

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """A connection of the pool, as the driver has it. Raises EcmError where the driver raised its own."""
        try:
            borrowed = self._engine.raw_connection()
        except DatabaseError as error:
            raise explained(self._path, error.orig) from error
        try:
            raw = borrowed.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            raw.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            raw.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
            yield raw
        except sqlite3.Error as error:
            raise explained(self._path, error) from error
        finally:
            borrowed.close()


def lists(path: Path) -> list[ListRow]:
    """All lists, read by a process that does not write the file; none if there is no file yet."""
    if not path.exists():
        return []
    connection = connect_read_only(path)
    try:
        return _lists(connection)
    except sqlite3.Error as error:
        raise explained(path, error) from error
    finally:
        connection.close()


def show(path: Path, name: str) -> ListRow:
    """A list, read by a process that does not write the file. Raises EcmError unknown_list."""
    return _one(lists(path), name)


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def _lists(connection: sqlite3.Connection) -> list[ListRow]:
    rows = connection.execute(
        "SELECT id, name, fields, subscribed, unsubscribed, created, changed FROM lists ORDER BY name"
    )
    return [ListRow(row[0], row[1], msgpack.unpackb(row[2]), *row[3:]) for row in rows]


def _one(rows: list[ListRow], name: str) -> ListRow:
    for row in rows:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in rows[:8])
    raise EcmError(
        "unknown_list",
        f"no list of that name: {name}",
        field="audience",
        hint=f"there are: {known}" if known else "make it by `ctl import LIST FILE`",
    )
