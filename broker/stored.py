"""What the store says of one campaign, read without the store: for commands that need no engine.

Opens `store.db` read only with the standard library and tolerates everything: no file, a file of another version, one
that this user cannot read. The answer is then None, and whoever asks goes by the files alone. Changes nothing: where
no engine has left a write-ahead log the file is opened as immutable, so that SQLite makes no file beside it either.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.contract.codec import unpack
from broker.contract.errors import EcmError

__all__ = ["Stored", "stored_campaign"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A campaign as the store knows it.

    state    draft, preparing, running, waiting, paused, finished, cancelled
    counts   what the snapshot counted; of a campaign that has ended, its final account too; empty if not known
    shards   rows by shard number
    """

    state: str
    counts: dict[str, Any]
    shards: dict[int, int]


def stored_campaign(store_db: Path, campaign: int) -> Stored | None:
    """The campaign's row and shards, or None if they cannot be read."""
    wal = store_db.with_name(store_db.name + "-wal")
    options = "mode=ro" if wal.exists() else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{store_db.absolute().as_uri()}?{options}", uri=True)) as connection:
            row = connection.execute("SELECT state, counts FROM campaigns WHERE id = ?", (campaign,)).fetchone()
            shards = connection.execute("SELECT number, rows FROM shards WHERE campaign = ?", (campaign,)).fetchall()
        return Stored(row[0], unpack(row[1]) if row[1] else {}, dict(shards)) if row else None
    except (sqlite3.Error, EcmError):
        return None
