"""Opens the engine's SQLite files, durable and at the newest revision of their schema.

`store.db` is written by the broker and `audience.db` by the loader: SQLite locks per file, so each file has one
writing process. This module knows how a file is opened and migrated; it may not know what is in it.

Invariants
- A connection handed out is in WAL mode with `synchronous = FULL`: what was committed survives a power loss, and
  readers never wait for the writer.
- Foreign keys are enforced on every connection.
- Transactions begin when SQLAlchemy says so (`BEGIN`), never by the driver's guess at the statement's kind, so DDL is
  undone with the rest when a migration fails half-way.
- A file at the head revision is opened without importing Alembic (100 ms, a tenth of the whole start); a test holds
  `HEADS` against the scripts.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError

from broker.contract.errors import EcmError

__all__ = [
    "BUSY_TIMEOUT_MS",
    "HEADS",
    "MIGRATIONS",
    "Kind",
    "connect_read_only",
    "explained",
    "open_database",
    "recorded_version",
]

Kind = Literal["store", "audience"]

HEADS: Final[dict[Kind, str]] = {"store": "0002", "audience": "0001"}
"""The newest revision of each kind of file, as its last script under `migrations/<kind>/versions` calls itself."""

MIGRATIONS: Final = Path(__file__).parent / "migrations"

BUSY_TIMEOUT_MS: Final = 10_000
"""How long a statement waits for another process (a backup, a checkpoint) before it fails."""

FILE_MODE: Final = 0o600  # addresses are inside; SQLite gives -wal and -shm the mode of the file


def open_database(path: Path, kind: Kind) -> Engine:
    """An engine for the file at `path`, which is made if missing and migrated to `HEADS[kind]`.

    Raises EcmError: `io_failed` if it is not such a database or is damaged, `disk_full`, `state_unwritable`,
    `start_failed` if a newer version of the program made it.
    """
    _touch(path)
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    try:
        with engine.connect() as connection:
            if recorded_version(connection) != HEADS[kind]:
                _migrate(connection, kind, path)
    except DatabaseError as error:
        engine.dispose()
        raise explained(path, error.orig) from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def connect_read_only(path: Path) -> sqlite3.Connection:
    """A plain read-only connection, for a process that is not the file's writer.

    Raises EcmError `io_failed` if there is no such file. The caller closes it.
    """
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_MS / 1000)
    except sqlite3.OperationalError as error:
        raise EcmError("io_failed", f"cannot read the database: {error}", file=str(path)) from error
    connection.isolation_level = None  # no transaction unless the caller says BEGIN
    return connection


def recorded_version(connection: Connection) -> str | None:
    """The revision that the file says it has; None for a new one."""
    if connection.scalar(text("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'")) is None:
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


def explained(path: Path, error: BaseException | None) -> EcmError:
    """The driver's error as one line for the operator."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte; the others tell which system call it was
    if code == sqlite3.SQLITE_FULL:
        return EcmError("disk_full", "no space left for the database", file=str(path), hint="free some space")
    if code == sqlite3.SQLITE_READONLY:
        return EcmError("state_unwritable", "the database is not writable", file=str(path))
    return EcmError("io_failed", f"the database failed: {error}", file=str(path))


def _touch(path: Path) -> None:
    """Make the file ourselves: SQLite would make it with the mode that the umask leaves."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, FILE_MODE))
    except OSError as error:
        raise EcmError(
            "state_unwritable",
            f"cannot open the database: {error.strerror}",
            file=str(path),
            hint="the engine's user must be able to write the state directory",
        ) from error


def _prepare(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin or commit on its own
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    # 64 MB: an import writes each page of the index once per checkpoint, so few of them are 5% of its time.
    connection.execute("PRAGMA wal_autocheckpoint = 16384")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _migrate(connection: Connection, kind: Kind, path: Path) -> None:
    """Bring the file to the head revision in one transaction."""
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("version_locations", str(MIGRATIONS / kind / "versions").replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    try:
        command.upgrade(config, "head")
        connection.commit()
    except CommandError as error:
        raise EcmError(
            "start_failed",
            f"the database is of revision {recorded_version(connection)}, which this version does not know",
            file=str(path),
            hint=f"start the version that made it, or a newer one; this one knows up to {HEADS[kind]}",
        ) from error
