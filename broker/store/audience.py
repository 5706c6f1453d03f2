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
from broker.store.database import connect_read_only, explained, open_database

__all__ = [
    "ADDRESS_FIELD",
    "SUBSCRIBED",
    "UNSUBSCRIBED",
    "AudienceStore",
    "ListRow",
    "Member",
    "Merged",
    "Stored",
    "lists",
    "show",
]

SUBSCRIBED: Final = 1
UNSUBSCRIBED: Final = 2
ADDRESS_FIELD: Final = "email"  # what a list calls the address, whatever column it came from

MERGE_ROWS: Final = 20_000  # of one transaction: some 100 ms, so an unsubscribe never waits long behind an import
LOOKUP_KEYS: Final = 500  # of one SELECT
READ_ROWS: Final = 8_192
CACHE_KIB: Final = 16_384  # of pages, for the inner nodes of a large table
NAME_CHARACTERS_MAX: Final = 100
FIELDS_MAX: Final = 1_000  # of a list: beyond that names are made of values
SHAPES_MAX: Final = 10_000

Names = tuple[str, ...]
Member = tuple[bytes, str, Names, bytes]  # key, address, names (the address first), packed map of the other fields
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


@dataclass(slots=True)
class Merged:
    """What a merge did, or would do."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    unsubscribed_kept: int = 0

    def __add__(self, other: Merged) -> Merged:
        return Merged(
            self.added + other.added,
            self.updated + other.updated,
            self.unchanged + other.unchanged,
            self.unsubscribed_kept + other.unsubscribed_kept,
        )


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
            return _shapes(connection, list_id)

    def merge(self, list_id: int | None, members: Sequence[Member], now_s: float, *, dry_run: bool = False) -> Merged:
        """Put members into a list, each key once and in rising order of keys.

        list_id   None: a list that does not exist yet, to which everybody would be new (dry run)
        Raises EcmError disk_full, io_failed; then the batches before the one that failed stay.
        """
        merged = Merged()
        if list_id is None:
            merged.added = len(members)
            return merged
        for first in range(0, len(members), MERGE_ROWS):
            batch = members[first : first + MERGE_ROWS]
            with self._connect() as connection, _transaction(connection):
                _Merge(connection, list_id, now_s, dry_run, merged).run(batch)
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
            _count(connection, list_id, -changed, changed, now_s)
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


class _Merge:
    """One batch of a merge, within a transaction."""

    def __init__(
        self, connection: sqlite3.Connection, list_id: int, now_s: float, dry_run: bool, merged: Merged
    ) -> None:
        self._connection = connection
        self._list = list_id
        self._now_s = now_s
        self._dry_run = dry_run
        self._merged = merged
        self._names = _shapes(connection, list_id)
        self._numbers = {names: number for number, names in self._names.items()}

    def run(self, members: Sequence[Member]) -> None:
        """Sort members into new, changed, unchanged and unsubscribed ones, and write what is to be written."""
        known = self._known([member[0] for member in members])
        merged = self._merged
        fresh = [member for member in members if member[0] not in known] if known else members
        merged.added += len(fresh)
        changed: list[tuple[str, int, bytes, float, int, bytes]] = []
        for key, address, its_names, its_fields in members if known else ():
            there = known.get(key)
            if there is None:
                continue
            status, old_address, shape, old_fields = there
            if status != SUBSCRIBED:
                merged.unsubscribed_kept += 1
                continue
            names, fields = self._combine(shape, old_fields, its_names, its_fields)
            if fields == old_fields and address == old_address:
                merged.unchanged += 1
                continue
            merged.updated += 1
            if not self._dry_run:
                changed.append((address, self._shape(names), fields, self._now_s, self._list, key))
        if self._dry_run:
            return
        now_s, list_id, shape_of = self._now_s, self._list, self._shape
        self._connection.executemany(
            "INSERT INTO subscribers (list, key, address, status, shape, fields, changed) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (list_id, key, address, SUBSCRIBED, shape_of(names), fields, now_s)
                for key, address, names, fields in fresh
            ],
        )
        self._connection.executemany(
            "UPDATE subscribers SET address = ?, shape = ?, fields = ?, changed = ? WHERE list = ? AND key = ?", changed
        )
        if fresh or changed:
            _count(self._connection, list_id, len(fresh), 0, now_s)

    def _known(self, keys: list[bytes]) -> dict[bytes, tuple[int, str, int, bytes]]:
        """Status, address, shape and fields of those of the keys that are in the list."""
        known: dict[bytes, tuple[int, str, int, bytes]] = {}
        if not self._names:  # nobody was ever in it
            return known
        for first in range(0, len(keys), LOOKUP_KEYS):
            some = keys[first : first + LOOKUP_KEYS]
            marks = ", ".join("?" * len(some))
            rows = self._connection.execute(
                f"SELECT key, status, address, shape, fields FROM subscribers WHERE list = ? AND key IN ({marks})",  # noqa: S608 - marks only
                (self._list, *some),
            )
            known.update((row[0], row[1:]) for row in rows)
        return known

    def _combine(self, shape: int, old_fields: bytes, names: Names, fields: bytes) -> tuple[Names, bytes]:
        """The fields a known member gets: the new ones over the old ones."""
        old_names = self._names[shape]
        if old_names == names:
            return names, fields
        both = msgpack.unpackb(old_fields) | msgpack.unpackb(fields)
        return (ADDRESS_FIELD, *both), msgpack.packb(both)

    def _shape(self, names: Names) -> int:
        """Number of a set of names, which is new to the list perhaps."""
        number = self._numbers.get(names)
        if number is not None:
            return number
        row = self._connection.execute(
            "INSERT INTO shapes (list, names) VALUES (?, ?) RETURNING id", (self._list, msgpack.packb(names))
        ).fetchone()
        number = int(row[0])
        self._numbers[names] = number
        self._names[number] = names
        packed = self._connection.execute("SELECT fields FROM lists WHERE id = ?", (self._list,)).fetchone()[0]
        fields = dict.fromkeys((*msgpack.unpackb(packed), *names))
        if len(fields) > FIELDS_MAX or len(self._names) > SHAPES_MAX:
            raise EcmError(
                "invalid_value",
                f"the rows of a list have at most {FIELDS_MAX} different fields in {SHAPES_MAX} combinations",
                hint="are values used as names?",
            )
        self._connection.execute("UPDATE lists SET fields = ? WHERE id = ?", (msgpack.packb(list(fields)), self._list))
        return number


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


def _shapes(connection: sqlite3.Connection, list_id: int) -> dict[int, Names]:
    rows = connection.execute("SELECT id, names FROM shapes WHERE list = ?", (list_id,))
    return {number: tuple(msgpack.unpackb(names)) for number, names in rows}


def _count(connection: sqlite3.Connection, list_id: int, subscribed: int, unsubscribed: int, now_s: float) -> None:
    connection.execute(
        "UPDATE lists SET subscribed = subscribed + ?, unsubscribed = unsubscribed + ?, changed = ? WHERE id = ?",
        (subscribed, unsubscribed, now_s, list_id),
    )
