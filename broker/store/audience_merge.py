"""One batch of members merged into a list: who is new, who changes, who stays as they are.

Runs inside a transaction that `audience` opened; may not begin or commit one.

Invariants
- Somebody who left the list is neither changed nor turned back on.
- Fields that a member of the batch does not name keep their values.
- The counts of the list change with its people.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import msgpack  # type: ignore[import-untyped, unused-ignore]

from broker.contract.errors import EcmError

__all__ = [
    "ADDRESS_FIELD",
    "SUBSCRIBED",
    "UNSUBSCRIBED",
    "Member",
    "Merge",
    "Merged",
    "Names",
    "change_counts",
    "shapes_of",
]

SUBSCRIBED: Final = 1
UNSUBSCRIBED: Final = 2
ADDRESS_FIELD: Final = "email"  # what a list calls the address, whatever column it came from
LOOKUP_KEYS: Final = 500  # of one SELECT
INSERT_ROWS: Final = 500  # of one INSERT: SQLite then works without Python's global lock held, 1 us a row less
FIELDS_MAX: Final = 1_000  # of a list: beyond that names are made of values
SHAPES_MAX: Final = 10_000

Names = tuple[str, ...]
Member = Sequence[Any]  # [key, address, number of its names among those of the merge, packed map of the other fields]


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


class Merge:
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
        self._shapes = shapes_of(connection, list_id)
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
            change_counts(self._connection, self._list, len(fresh), 0, self._now_s)

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


def shapes_of(connection: sqlite3.Connection, list_id: int) -> dict[int, Names]:
    """The sets of names that occur in a list, by number."""
    rows = connection.execute("SELECT id, names FROM shapes WHERE list = ?", (list_id,))
    return {number: tuple(msgpack.unpackb(names)) for number, names in rows}


def change_counts(
    connection: sqlite3.Connection, list_id: int, subscribed: int, unsubscribed: int, now_s: float
) -> None:
    """Add to the counts of a list, in the transaction that changes its people."""
    connection.execute(
        "UPDATE lists SET subscribed = subscribed + ?, unsubscribed = unsubscribed + ?, changed = ? WHERE id = ?",
        (subscribed, unsubscribed, now_s, list_id),
    )
