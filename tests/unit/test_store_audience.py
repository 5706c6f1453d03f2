"""The tables of audience.db and what merges, reads and departures do to them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from broker.contract.errors import EcmError
from broker.store import audience, audience_merge
from broker.store.audience import AudienceStore, Member, Merged, Names
from broker.store.audience_schema import metadata
from broker.store.database import open_database
from shm import address as shm_address


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AudienceStore]:
    store = AudienceStore.open(tmp_path / "audience.db")
    yield store
    store.close()


def people(first: int, last: int, **fields: str) -> tuple[list[Member], list[Names]]:
    """Members in the order of their keys, and the one set of names they have."""
    texts = [f"user{number}@example.com" for number in range(first, last)]
    members = sorted([shm_address.key(text), text, 0, msgpack.packb(fields)] for text in texts)
    return list(members), [("email", *fields)]


def test_revisions_make_what_the_schema_says(tmp_path: Path) -> None:
    """Tables made by the revisions and tables declared in audience_schema.py are the same."""
    engine = open_database(tmp_path / "audience.db", "audience")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_merge_of_the_same_members_changes_nothing(store: AudienceStore) -> None:
    """A merge may be repeated at will."""
    row = store.ensure("people", 1.0)
    members = people(0, 1_200, name="x")
    assert store.merge(row.id, *members, 1.0) == Merged(added=1_200)
    assert store.merge(row.id, *members, 2.0) == Merged(unchanged=1_200)
    assert store.merge(row.id, *people(1_000, 1_500, name="y"), 3.0) == Merged(added=300, updated=200)
    assert store.get("people").subscribed == 1_500


def test_failed_merge_leaves_whole_batches(store: AudienceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that fails is undone as a whole, its count too; those before it stay."""
    monkeypatch.setattr(audience, "MERGE_ROWS", 10)
    row = store.ensure("people", 1.0)
    members, names = people(0, 30, name="x")
    members[25] = [members[25][0], None, *members[25][2:]]
    with pytest.raises(EcmError) as raised:
        store.merge(row.id, members, names, 1.0)
    assert raised.value.code == "io_failed"
    assert store.get("people").subscribed == sum(1 for _ in store.iterate(row.id)) == 20


def test_reader_sees_one_moment_while_an_import_goes_on(store: AudienceStore, tmp_path: Path) -> None:
    """A snapshot that reads while others write gets the list as it was at its first row, and blocks nobody."""
    row = store.ensure("people", 1.0)
    store.merge(row.id, *people(0, audience.READ_ROWS + 10, name="x"), 1.0)
    reader = store.read(row.id)
    first = next(reader)
    writer = threading.Thread(target=store.merge, args=(row.id, *people(50_000, 50_100, name="y"), 2.0))
    writer.start()
    writer.join(10)
    assert not writer.is_alive()
    assert len(first) + sum(map(len, reader)) == audience.READ_ROWS + 10
    assert store.get("people").subscribed == audience.READ_ROWS + 110


def test_list_read_by_another_process_needs_no_writer(store: AudienceStore, tmp_path: Path) -> None:
    """Lists are read from the file alone; a file that does not exist has none."""
    row = store.ensure("people", 1.0)
    store.merge(row.id, *people(0, 3, name="x"), 2.0)
    assert [found.to_map() for found in audience.lists(tmp_path / "audience.db")] == [
        {
            "list": "people",
            "subscribed": 3,
            "unsubscribed": 0,
            "fields": ["email", "name"],
            "created": 1.0,
            "changed": 2.0,
        }
    ]
    assert audience.lists(tmp_path / "none.db") == []
    with pytest.raises(EcmError) as raised:
        audience.show(tmp_path / "audience.db", "persons")
    assert (raised.value.code, raised.value.hint) == ("unknown_list", "there are: people")


def test_values_used_as_names_are_refused(store: AudienceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list whose rows have ever new names ends in an error before it ends in a full disk."""
    monkeypatch.setattr(audience_merge, "FIELDS_MAX", 5)
    row = store.ensure("people", 1.0)
    members = [
        [key, text, index, msgpack.packb({f"n{index}": "x"})]
        for index, (key, text, _, _) in enumerate(people(0, 10)[0])
    ]
    names = [("email", f"n{index}") for index in range(10)]
    with pytest.raises(EcmError, match="at most 5 different fields"):
        store.merge(row.id, members, names, 1.0)


def test_damaged_file_is_an_error_of_the_world(tmp_path: Path) -> None:
    """A file that is no database is told with its path and exit 1."""
    (tmp_path / "audience.db").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(EcmError) as raised:
        AudienceStore.open(tmp_path / "audience.db")
    assert (raised.value.code, raised.value.exit) == ("io_failed", 1)


def test_rows_are_clustered_by_key(store: AudienceStore, tmp_path: Path) -> None:
    """Members are read in the order of their keys without sorting them."""
    store.ensure("people", 1.0)
    connection = sqlite3.connect(tmp_path / "audience.db")
    plan = connection.execute(
        "EXPLAIN QUERY PLAN SELECT key FROM subscribers WHERE list = 1 AND status = 1 ORDER BY key"
    ).fetchall()
    connection.close()
    assert "PRIMARY KEY" in plan[0][3]
    assert len(plan) == 1
