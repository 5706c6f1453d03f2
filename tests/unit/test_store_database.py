"""How the engine's database files are opened: durable, migrated, private, quick."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from broker.contract.errors import EcmError
from broker.store import database
from broker.store.schema import metadata

OPEN_AND_TELL = """
import sys
from pathlib import Path
from broker.store.database import open_database
open_database(Path(sys.argv[1]), "store").dispose()
print("alembic" in sys.modules)
"""


def head(kind: Literal["store", "audience"]) -> str | None:
    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    config.set_main_option("version_locations", str(database.MIGRATIONS / kind / "versions"))
    config.set_main_option("path_separator", "newline")
    return ScriptDirectory.from_config(config).get_current_head()


@pytest.mark.parametrize("kind", ["store", "audience"])
def test_head_constant_names_the_last_revision(kind: Literal["store", "audience"]) -> None:
    """The constant that lets a start skip Alembic is the head of the scripts."""
    assert database.HEADS[kind] == head(kind)


def test_a_new_file_is_made_private_durable_and_at_head(tmp_path: Path) -> None:
    """A new file is 0600, in WAL mode, synced in full, with foreign keys, and holds the newest tables."""
    path = tmp_path / "store.db"
    engine = database.open_database(path, "store")
    with engine.connect() as connection:
        assert database.recorded_version(connection) == database.HEADS["store"]
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
        assert connection.scalar(text("PRAGMA busy_timeout")) == database.BUSY_TIMEOUT_MS
    engine.dispose()
    assert path.stat().st_mode & 0o777 == 0o600


def test_revisions_make_what_the_schema_says(tmp_path: Path) -> None:
    """Tables made by the revisions and tables declared in schema.py are the same."""
    engine = database.open_database(tmp_path / "store.db", "store")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_a_file_at_head_is_opened_without_alembic(tmp_path: Path) -> None:
    """Alembic is imported to make a file and not to open it again."""
    path = tmp_path / "store.db"
    told = [
        subprocess.run(
            [sys.executable, "-c", OPEN_AND_TELL, path], capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert told == ["True", "False"]


def test_a_failed_migration_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """A revision that fails half-way undoes its tables too, so the next start can try again."""
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE suppressions (x)")  # the first revision meets it after making other tables
    other.close()
    with pytest.raises(EcmError) as caught:
        database.open_database(path, "store")
    assert caught.value.code == "io_failed"
    with sqlite3.connect(path) as other:
        assert [name for (name,) in other.execute("SELECT name FROM sqlite_master WHERE type = 'table'")] == [
            "suppressions"
        ]
    other.close()


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """A file whose revision is unknown is not touched, and the error names the revision and the way back."""
    path = tmp_path / "store.db"
    database.open_database(path, "store").dispose()
    with sqlite3.connect(path) as other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")
    other.close()
    with pytest.raises(EcmError, match="9999") as caught:
        database.open_database(path, "store")
    assert caught.value.code == "start_failed"
    assert caught.value.hint


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    """Something else in the place of the database is an error of one line that names the file."""
    path = tmp_path / "store.db"
    path.write_bytes(b"email\n" * 1000)
    with pytest.raises(EcmError, match="not a database") as caught:
        database.open_database(path, "store")
    assert (caught.value.code, caught.value.file) == ("io_failed", str(path))


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A missing directory is `state_unwritable`, with the path."""
    with pytest.raises(EcmError) as caught:
        database.open_database(tmp_path / "none" / "store.db", "store")
    assert caught.value.code == "state_unwritable"


def test_a_reader_sees_what_was_committed_and_cannot_write(tmp_path: Path) -> None:
    """Another process reads the file while the writer has it open, and has no way to change it."""
    path = tmp_path / "store.db"
    engine = database.open_database(path, "store")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO requests VALUES ('k', x'00', x'00', 1.0)"))
    reader = database.connect_read_only(path)
    assert reader.execute("SELECT key FROM requests").fetchall() == [("k",)]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM requests")
    reader.close()
    engine.dispose()


def test_a_reader_of_no_file_is_told(tmp_path: Path) -> None:
    """Reading a database that is not there is an error, not an empty database."""
    with pytest.raises(EcmError) as caught:
        database.connect_read_only(tmp_path / "none.db")
    assert caught.value.code == "io_failed"
    assert os.listdir(tmp_path) == []
