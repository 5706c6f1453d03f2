"""The tables of `store.db`, for SQLAlchemy Core: what people and the engine decided, and nothing that a file tells.

Every table has one writer: the broker's store thread. The rows of a campaign's recipients are not here; they live in
its shards and ledgers. A change of a table is a new revision under `migrations/store/versions`; a test holds this
module against what the revisions make.

Times are engine time: seconds since the epoch as REAL, nanoseconds where a name ends in `_ns`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)

__all__ = ["campaigns", "jobs", "metadata", "relays", "requests", "shards", "suppression_changes", "suppressions"]

metadata = MetaData()

# sqlite_autoincrement: a number is never given twice, not even after its row was deleted; files, events and other
# tools name campaigns, jobs and changes by number.

campaigns = Table(
    "campaigns",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("state", Text, nullable=False),
    Column("reason", LargeBinary),  # packed {code, message, hint, since}; only draft, waiting and paused have one
    Column("created", Double, nullable=False),
    Column("launched", Double),
    Column("finished", Double),  # the end, cancelled ones too
    Column("started_ns", BigInteger),  # first attempt
    Column("spec", LargeBinary, nullable=False),  # packed CampaignSpec.to_map()
    Column("counts", LargeBinary),  # packed map: the snapshot's numbers, at the end the whole account; null: not known
    Column("suppressed_position", BigInteger),  # the last suppression change that the snapshot knew
    CheckConstraint(
        "state IN ('draft', 'preparing', 'running', 'waiting', 'paused', 'finished', 'cancelled')",
        name="campaign_state",
    ),
    sqlite_autoincrement=True,
)

shards = Table(
    "shards",
    metadata,
    Column("campaign", Integer, ForeignKey("campaigns.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("group", Text, nullable=False),  # the recipient-domain group, "other" for all without a window of their own
    Column("rows", Integer, nullable=False),
    sqlite_with_rowid=False,
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("args", LargeBinary, nullable=False),  # packed map
    Column("result", LargeBinary),  # packed map; progress is kept in memory alone: a restart begins the work again
    Column("error", LargeBinary),  # packed EcmError map
    Column("key", Text, unique=True),  # idempotency: asking twice under one key is one job
    Column("created", Double, nullable=False),
    Column("finished", Double),
    CheckConstraint("state IN ('queued', 'running', 'done', 'failed')", name="job_state"),
    sqlite_autoincrement=True,
)
Index("jobs_unfinished", jobs.c.id, sqlite_where=jobs.c.state.in_(["queued", "running"]))

requests = Table(
    "requests",
    metadata,
    Column("key", Text, primary_key=True),
    Column("request", LargeBinary, nullable=False),  # SHA-256 of operation and arguments: one key, one request
    Column("reply", LargeBinary, nullable=False),  # packed {ok, result | error}
    Column("created", Double, nullable=False),
)
Index("requests_created", requests.c.created)

# What was learnt of a relay as long as it is this server; what people declared of it stands in ecm.toml alone.
relays = Table(
    "relays",
    metadata,
    Column("name", Text, primary_key=True),
    Column("host", Text, primary_key=True),
    Column("port", Integer, primary_key=True),
    Column("mode", Integer, nullable=False),  # the one it was stepped down to; 0: none
    Column("mode_until", Double, nullable=False),
    Column("close_count", Integer, nullable=False),  # fewest messages after which it closed a connection; 0: never
    Column("close_until", Double, nullable=False),
    Column("tripped_until", Double, nullable=False),  # when it is probed; 0: it is not tripped
    Column("trips", Integer, nullable=False),  # in a row
    Column("cause", Text, nullable=False),
    Column("reason", Text, nullable=False),
    sqlite_with_rowid=False,
)

# Who is suppressed now. The position is the number of the change that put it here, so rows are appended in order
# and only the small index on the key is written at random places: 2,000,000 keys are a 50 MB index, which an import
# sorted by key fills page by page.
suppressions = Table(
    "suppressions",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("key", LargeBinary, nullable=False, unique=True),  # shm.address.key: 16 bytes
    Column("address", Text, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("created", Double, nullable=False),
)

# Every change ever made, without gaps: the arena's log is this table from some position on.
suppression_changes = Table(
    "suppression_changes",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("op", SmallInteger, nullable=False),  # 1 add, 2 remove
    Column("kind", SmallInteger, nullable=False),
    Column("key", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
