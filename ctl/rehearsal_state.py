"""What a rehearsal takes from the real instance: its settings with other servers, its suppressions, its lists.

Reads the real instance's databases as any reader may (SQLite's online backup, read only) and never writes there.

Invariants
- No host, port, user name or password of a real relay is in the settings made here: nobody real can be reached.
- Of the store, suppressions alone are taken: a rehearsal knows no real campaign and no real job.
"""

import os
import sqlite3
from pathlib import Path

from broker.contract.campaign import CampaignSpec
from broker.contract.errors import EcmError
from broker.contract.paths import StateDir
from broker.contract.settings import Settings
from ctl.toml_text import toml_text

__all__ = ["copy_lists", "copy_suppressions", "settings_text"]

RETRY_S = 1  # retries are rehearsed too, without their real waits
BUSY_S = 10.0
KEPT_TABLES = ("suppression", "alembic_version", "sqlite_")  # beginnings of names


def settings_text(settings: Settings, host: str, port: int) -> str:
    """The settings for the throw-away engine: relays and pools by their names, all of them at one server, no limits."""
    relays = {
        name: {
            "host": host,
            "port": port,
            "tls": "none",
            "connections": relay.connections,
            "window": relay.window,
            "messages_per_connection": relay.messages_per_connection,
            "from_domains": relay.from_domains,
        }
        for name, relay in settings.relays.items()
    }
    document = {
        "relay": relays,
        "pool": settings.pools,
        "retry": {"first_s": RETRY_S, "max_s": RETRY_S, "share": settings.retry.share},
        "budget": {"share": settings.budget.share},
        "ledger": {"sync_ms": settings.ledger.sync_ms},
    }
    return toml_text(document)


def copy_suppressions(real: StateDir, stage: StateDir) -> str:
    """Take the suppressions of an instance over; returns, in a line, where they are from or why there are none."""
    if not real.store_db.exists():
        return f"no instance in {real.root}: nobody is suppressed"
    try:
        _backup(real.store_db, stage.store_db)
        count = _keep_suppressions(stage.store_db)
    except (OSError, sqlite3.Error) as error:
        stage.store_db.unlink(missing_ok=True)
        return f"the suppressions of {real.root} cannot be read, nobody is suppressed here: {error}"
    return f"{count:,} suppressed addresses of {real.root}"


def copy_lists(real: StateDir, stage: StateDir, spec: CampaignSpec) -> None:
    """Take the lists that are kept over, if the campaign's audience is one. Raises EcmError io_failed."""
    if spec.audience is None:
        return
    try:
        if not real.audience_db.exists():
            raise FileNotFoundError(f"no such file: {real.audience_db}")
        _backup(real.audience_db, stage.audience_db)
    except (OSError, sqlite3.Error) as error:
        raise EcmError(
            "io_failed",
            f"the list `{spec.audience}` cannot be read: {error}",
            hint="rehearse as the engine's user, or with --recipients FILE",
        ) from error


def _backup(real: Path, copy: Path) -> None:
    """SQLite's online backup: whole, whatever the engine writes meanwhile."""
    copy.parent.mkdir(mode=0o710, exist_ok=True)
    os.close(os.open(copy, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))  # addresses are inside
    source = sqlite3.connect(f"{real.as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
    try:
        target = sqlite3.connect(copy)
        try:
            source.backup(target)
        finally:
            target.close()
    finally:
        source.close()


def _keep_suppressions(path: Path) -> int:
    """Empty every table but the suppressions; returns how many there are."""
    connection = sqlite3.connect(path)
    try:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        with connection:
            for table in tables:
                if not table.startswith(KEPT_TABLES):
                    connection.execute(f'DELETE FROM "{table}"')  # noqa: S608 - a name SQLite itself told
        count: int = connection.execute("SELECT count(*) FROM suppressions").fetchone()[0]
        return count
    finally:
        connection.close()
