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
from itertools import chain
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
    "Names",
    "Stored",
    "lists",
    "show",
]

SUBSCRIBED: Final = 1
UNSUBSCRIBED: Final = 2
ADDRESS_FIELD: Final = "email"  # what a list calls the address, whatever column it came from

MERGE_ROWS: Final = 20_000  # of one transaction: some 100 ms, so an unsubscribe never waits long behind an import
LOOKUP_KEYS: Final = 500  # of one SELECT
INSERT_ROWS: Final = 500  # of one INSERT: SQLite then works without Python's global lock held, 1 us a row less
LOG_PAGES: Final = 16_384  # 64 MB of log before it moves into the file: fewer waits for the disk in an import
READ_ROWS: Final = 8_192
CACHE_KIB: Final = 16_384  # of pages, for the inner nodes of a large table
NAME_CHARACTERS_MAX: Final = 100
FIELDS_MAX: Final = 1_000  # of a list: beyond that names are made of values
SHAPES_MAX: Final = 10_000

Names = tuple[str, ...]
Member = Sequence[Any]  # [key, address, number of its names among those of the merge, packed map of the other fields]
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
                _Merge(connection, list_id, names, now_s, dry_run, merged).run(batch)
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


class _Merge:
    """One batch of a merge, within a transaction."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        list_id: int,
        names: Sequence[Names],
        now_s: float,
        dry_run: bool,
        merged: Merged,
    ) -> None:
        self._connection = connection
        self._list = list_id
        self._names = names
        self._now_s = now_s
        self._dry_run = dry_run
        self._merged = merged
        self._shapes = _shapes(connection, list_id)
        self._numbers = {shape: number for number, shape in self._shapes.items()}

    def run(self, members: Sequence[Member]) -> None:
        """Sort members into new, changed, unchanged and unsubscribed ones, and write what is to be written."""
        known = self._known(members)
        fresh = [member for member in members if member[0] not in known] if known else members
        self._merged.added += len(fresh)
        changed = self._changed(members, known) if known else []
        if self._dry_run:
            return
        self._insert(fresh)
        self._connection.executemany(
            "UPDATE subscribers SET address = ?, shape = ?, fields = ?, changed = ? WHERE list = ? AND key = ?",
            [
                (address, self._number(names), fields, self._now_s, self._list, key)
                for key, address, names, fields in changed
            ],
        )
        if fresh or changed:
            _count(self._connection, self._list, len(fresh), 0, self._now_s)

    def _known(self, members: Sequence[Member]) -> dict[bytes, tuple[int, str, int, bytes]]:
        """Status, address, shape and fields of those of the members who are in the list, by key."""
        known: dict[bytes, tuple[int, str, int, bytes]] = {}
        between = (self._list, members[0][0], members[-1][0])
        anybody = "SELECT 1 FROM subscribers WHERE list = ? AND key BETWEEN ? AND ? LIMIT 1"
        if self._connection.execute(anybody, between).fetchone() is None:
            return known
        for first in range(0, len(members), LOOKUP_KEYS):
            keys = [member[0] for member in members[first : first + LOOKUP_KEYS]]
            marks = ", ".join("?" * len(keys))
            rows = self._connection.execute(
                f"SELECT key, status, address, shape, fields FROM subscribers WHERE list = ? AND key IN ({marks})",  # noqa: S608 - marks only
                (self._list, *keys),
            )
            known.update((row[0], row[1:]) for row in rows)
        return known

    def _changed(
        self, members: Sequence[Member], known: dict[bytes, tuple[int, str, int, bytes]]
    ) -> list[tuple[bytes, str, Names, bytes]]:
        """Key, address, names and fields of the known members whom the merge changes; the others are counted."""
        merged = self._merged
        changed: list[tuple[bytes, str, Names, bytes]] = []
        for key, address, number, fields in members:
            if key not in known:
                continue
            status, old_address, shape, old_fields = known[key]
            if status != SUBSCRIBED:
                merged.unsubscribed_kept += 1
                continue
            names, new_fields = self._combine(shape, old_fields, self._names[number], fields)
            if new_fields == old_fields and address == old_address:
                merged.unchanged += 1
            else:
                merged.updated += 1
                changed.append((key, address, names, new_fields))
        return changed

    def _combine(self, shape: int, old_fields: bytes, names: Names, fields: bytes) -> tuple[Names, bytes]:
        """The fields a known member gets: the new ones over the old ones."""
        if self._shapes[shape] == names:
            return names, fields
        both = msgpack.unpackb(old_fields) | msgpack.unpackb(fields)
        return (ADDRESS_FIELD, *both), msgpack.packb(both)

    def _insert(self, fresh: Sequence[Member]) -> None:
        """New members, some hundred a statement where their names are the same, as those of a CSV file are."""
        numbers = {member[2] for member in fresh}
        if len(numbers) != 1:
            rows = [
                (self._list, key, address, SUBSCRIBED, self._number(self._names[number]), fields, self._now_s)
                for key, address, number, fields in fresh
            ]
            self._connection.executemany("INSERT INTO subscribers VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            return
        constant = (self._list, SUBSCRIBED, self._number(self._names[numbers.pop()]), self._now_s)
        for first in range(0, len(fresh), INSERT_ROWS):
            some = fresh[first : first + INSERT_ROWS]
            marks = ", ".join(["(?, ?, ?, ?)"] * len(some))
            self._connection.execute(
                "INSERT INTO subscribers (list, key, address, status, shape, fields, changed)"  # noqa: S608 - marks only
                f" SELECT ?1, column1, column2, ?2, ?3, column4, ?4 FROM (VALUES {marks})",
                (*constant, *chain.from_iterable(some)),
            )

    def _number(self, names: Names) -> int:
        """Number of a set of names in this list, to which it is new perhaps."""
        number = self._numbers.get(names)
        if number is not None:
            return number
        row = self._connection.execute(
            "INSERT INTO shapes (list, names) VALUES (?, ?) RETURNING id", (self._list, msgpack.packb(names))
        ).fetchone()
        number = int(row[0])
        self._numbers[names] = number
        self._shapes[number] = names
        packed = self._connection.execute("SELECT fields FROM lists WHERE id = ?", (self._list,)).fetchone()[0]
        fields = dict.fromkeys((*msgpack.unpackb(packed), *names))
        if len(fields) > FIELDS_MAX or len(self._shapes) > SHAPES_MAX:
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
