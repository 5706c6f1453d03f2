"""The tables of `audience.db`, for SQLAlchemy Core: lists that are kept and the people in them.

One process writes them, the loader. The people of a campaign are not here: a snapshot copies them into its shards.
A change of a table is a new revision under `migrations/audience/versions`; a test holds this module against what the
revisions make. Times are engine time, seconds.
"""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = ["lists", "metadata", "shapes", "subscribers"]

metadata = MetaData()

lists = Table(
    "lists",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("fields", LargeBinary, nullable=False),  # packed: every name some subscriber has, in order of appearance
    Column("subscribed", Integer, nullable=False),  # kept as people come and go, never by counting the table
    Column("unsubscribed", Integer, nullable=False),
    Column("created", Double, nullable=False),
    Column("changed", Double, nullable=False),
    sqlite_autoincrement=True,
)

# The sets of names that occur: one for all rows of a CSV file, so a snapshot sees at once who lacks a field.
shapes = Table(
    "shapes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("list", Integer, ForeignKey("lists.id", ondelete="CASCADE"), nullable=False),
    Column("names", LargeBinary, nullable=False),  # packed, in order
    UniqueConstraint("list", "names"),
)

# Clustered by key: imports arrive sorted, so each page is written once whatever the size of the list, and a snapshot
# reads in order. No foreign keys: they would cost a look-up for each of millions of rows.
subscribers = Table(
    "subscribers",
    metadata,
    Column("list", Integer, primary_key=True),
    Column("key", LargeBinary, primary_key=True),  # shm.address.key: 16 bytes
    Column("address", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),  # 1 subscribed, 2 unsubscribed: it never goes back by itself
    Column("shape", Integer, nullable=False),
    Column("fields", LargeBinary, nullable=False),  # packed map of all fields but the address
    Column("changed", Double, nullable=False),
    sqlite_with_rowid=False,
)
