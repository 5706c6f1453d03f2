"""Who must not be mailed, and every change of that, numbered: the table behind the arena's log.

The broker's store thread writes; the loader reads keys and the last position on a read-only connection, and listings
are read the same way, so that a long one never makes a change wait.

Invariants
- A change has a position; positions are consecutive from 1 and never reused, so the log in the arena is this table
  from some position on, entry by entry.
- `suppressions` is what the changes add up to: an address is in it if its last change is an addition.
- Nothing here forgets by itself: an address stays suppressed until somebody removes it.

A batch is a single statement with its rows as bound values: SQLite then works without Python's global lock held
(180,000 rows/s; row by row 120,000, measured). Keys are hashes, so a batch is sorted by key by whoever makes it from
a longer list: neighbours in the index share its pages, where random ones would write a page each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from broker.store.database import connect_read_only, explained
from broker.store.store import Store, driver

__all__ = [
    "ADD",
    "BATCH_ROWS",
    "KINDS",
    "REMOVE",
    "Changes",
    "Entry",
    "Suppressed",
    "add",
    "changes_since",
    "count",
    "keys",
    "last_position",
    "listing",
    "position",
    "remove",
]

ADD: Final = 1
REMOVE: Final = 2

KINDS: Final[Mapping[str, int]] = {"manual": 1, "unsubscribe": 2, "bounce": 3, "complaint": 4}
"""Number of each kind of reason, as the arena's log carries it; any other reason is `manual`."""

BATCH_ROWS: Final = 4_000
"""Rows of one transaction: about 20 ms, so a change of one row never waits long behind an import."""

READ_ROWS: Final = 65_536  # rows fetched at a time: 3 MB of Python objects, whatever the table holds


@dataclass(frozen=True, slots=True)
class Changes:
    """Consecutive changes as columns, the form the arena's log takes them in."""

    first: int
    """Position of the first; the others follow without a gap."""
    ops: NDArray[np.int32]
    """ADD or REMOVE."""
    kinds: NDArray[np.int32]
    """Values of KINDS."""
    keys: NDArray[np.uint64]
    """Shape (n, 2): the two words of each key."""

    def __len__(self) -> int:
        return len(self.ops)

    @property
    def last(self) -> int:
        """Position of the last."""
        return self.first + len(self.ops) - 1


class Entry(NamedTuple):
    """An address to suppress: its key and its normalised form (shm.address)."""

    key: bytes
    address: str


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A suppressed address, as listings show it. `created`: engine seconds."""

    position: int
    address: str
    kind: str
    reason: str
    source: str
    created: float


def add(store: Store, entries: Iterable[Entry], reason: str, source: str, now_s: float) -> Changes:
    """Suppress at most `BATCH_ROWS` addresses; answers the changes made.

    An address that is suppressed already keeps its reason and date and makes no change.
    """
    wanted = {entry.key: entry.address for entry in entries}
    assert len(wanted) <= BATCH_ROWS, "a batch has a bound: other calls wait behind it"
    kind = KINDS.get(reason, KINDS["manual"])
    with store.begin() as connection:
        raw = driver(connection)
        known = _known(raw, list(wanted))
        fresh = [(key, address) for key, address in wanted.items() if key not in known]
        first = _last_position(raw) + 1
        if not fresh:
            return _columns(first, [], [], [])
        rows = [value for n, (key, address) in enumerate(fresh, first) for value in (n, key, address)]
        raw.execute(
            "INSERT INTO suppressions (position, key, address, kind, reason, source, created)"  # noqa: S608 - marks only
            " SELECT column1, column2, column3, ?, ?, ?, ?"
            f" FROM (VALUES {_marks('(?, ?, ?)', len(fresh))})",
            (kind, reason, source, now_s, *rows),
        )
        raw.execute(
            "INSERT INTO suppression_changes (position, op, kind, key)"
            " SELECT position, ?, kind, key FROM suppressions WHERE position >= ? ORDER BY position",
            (ADD, first),
        )
    return _columns(first, [ADD] * len(fresh), [kind] * len(fresh), [key for key, _ in fresh])


def remove(store: Store, wanted: Iterable[bytes]) -> Changes:
    """Stop suppressing the addresses of these keys, at most `BATCH_ROWS`; answers the changes made."""
    asked = list(dict.fromkeys(wanted))
    assert len(asked) <= BATCH_ROWS, "a batch has a bound: other calls wait behind it"
    with store.begin() as connection:
        raw = driver(connection)
        known = _known(raw, asked)
        first = _last_position(raw) + 1
        there = [key for key in asked if key in known]
        raw.executemany("DELETE FROM suppressions WHERE key = ?", [(key,) for key in there])
        raw.executemany(
            "INSERT INTO suppression_changes (position, op, kind, key) VALUES (?, ?, ?, ?)",
            [(n, REMOVE, known[key], key) for n, key in enumerate(there, first)],
        )
    return _columns(first, [REMOVE] * len(there), [known[key] for key in there], there)


def changes_since(store: Store, after: int, limit: int = READ_ROWS) -> Changes:
    """The first `limit` changes whose position is greater than `after`. A million: 1.4 s."""
    with store.begin() as connection:
        rows = (
            driver(connection)
            .execute(
                "SELECT op, kind, key FROM suppression_changes WHERE position > ? ORDER BY position LIMIT ?",
                (after, limit),
            )
            .fetchall()
        )
    ops, kinds, found = zip(*rows, strict=True) if rows else ((), (), ())
    return _columns(after + 1, ops, kinds, found)


def position(store: Store) -> int:
    """The position of the last change; 0 before the first."""
    with store.begin() as connection:
        return _last_position(driver(connection))


def last_position(path: Path) -> int:
    """The position of the last change, read by another process. A snapshot notes it before it reads `keys`."""
    connection = connect_read_only(path)
    try:
        return _last_position(connection)
    except sqlite3.Error as error:
        raise explained(path, error) from error
    finally:
        connection.close()


def keys(path: Path) -> NDArray[np.uint64]:
    """The keys of all suppressed addresses as pairs of words, shape (n, 2), read by another process.

    In the order of the index: by the bytes of the key. A million: 0.4 s.
    """
    connection = connect_read_only(path)
    try:
        cursor = connection.execute("SELECT key FROM suppressions ORDER BY key")
        parts = []
        while rows := cursor.fetchmany(READ_ROWS):
            parts.append(np.frombuffer(b"".join(key for (key,) in rows), dtype="<u8"))
    except sqlite3.Error as error:
        raise explained(path, error) from error
    finally:
        connection.close()
    words = np.concatenate(parts) if parts else np.empty(0, dtype="<u8")
    return words.reshape(-1, 2)


def count(path: Path) -> int:
    """How many addresses are suppressed."""
    return int(_read(path, "SELECT count(*) FROM suppressions", ())[0][0])


def listing(path: Path, prefix: str = "", limit: int = 100, before: int | None = None) -> list[Suppressed]:
    """Suppressed addresses that begin with `prefix` (normalised), newest first.

    before   go on after an earlier answer: the position of its last row
    With a prefix the whole table may be read, about 0.3 s for 2,000,000.
    """
    rows = _read(
        path,
        "SELECT position, address, kind, reason, source, created FROM suppressions"
        " WHERE position < ? AND substr(address, 1, ?) = ? ORDER BY position DESC LIMIT ?",
        (before if before is not None else 1 << 62, len(prefix), prefix, limit),
    )
    names = {number: name for name, number in KINDS.items()}
    return [
        Suppressed(number, address, names.get(kind, "manual"), reason, source, created)
        for number, address, kind, reason, source, created in rows
    ]


def _columns(first: int, ops: Sequence[int], kinds: Sequence[int], found: Sequence[bytes]) -> Changes:
    return Changes(
        first,
        np.array(ops, dtype=np.int32),
        np.array(kinds, dtype=np.int32),
        np.frombuffer(b"".join(found), dtype="<u8").reshape(-1, 2),
    )


def _read(path: Path, statement: str, values: Sequence[Any]) -> list[Any]:
    connection = connect_read_only(path)
    try:
        return connection.execute(statement, values).fetchall()
    except sqlite3.Error as error:
        raise explained(path, error) from error
    finally:
        connection.close()


def _known(raw: sqlite3.Connection, wanted: list[bytes]) -> dict[bytes, int]:
    """Key and kind of those that are suppressed."""
    marks = _marks("?", len(wanted))
    return dict(raw.execute(f"SELECT key, kind FROM suppressions WHERE key IN ({marks})", wanted))  # noqa: S608


def _last_position(raw: sqlite3.Connection) -> int:
    # The sequence, not the highest row: it stays right if old changes are ever cleared away.
    row = raw.execute("SELECT seq FROM sqlite_sequence WHERE name = 'suppression_changes'").fetchone()
    return 0 if row is None else int(row[0])


def _marks(mark: str, number: int) -> str:
    return ", ".join([mark] * number)
