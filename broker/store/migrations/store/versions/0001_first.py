"""The first tables of store.db: campaigns, shards, jobs, kept replies, suppressions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of a new file."""
    op.create_table(
        "campaigns",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.LargeBinary),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("launched", sa.Double),
        sa.Column("finished", sa.Double),
        sa.Column("started_ns", sa.BigInteger),
        sa.Column("spec", sa.LargeBinary, nullable=False),
        sa.Column("counts", sa.LargeBinary),
        sa.Column("suppressed_position", sa.BigInteger),
        sa.CheckConstraint(
            "state IN ('draft', 'preparing', 'running', 'waiting', 'paused', 'finished', 'cancelled')",
            name="campaign_state",
        ),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "shards",
        sa.Column("campaign", sa.Integer, sa.ForeignKey("campaigns.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("group", sa.Text, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    jobs = op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("args", sa.LargeBinary, nullable=False),
        sa.Column("result", sa.LargeBinary),
        sa.Column("error", sa.LargeBinary),
        sa.Column("key", sa.Text, unique=True),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("finished", sa.Double),
        sa.CheckConstraint("state IN ('queued', 'running', 'done', 'failed')", name="job_state"),
        sqlite_autoincrement=True,
    )
    op.create_index("jobs_unfinished", "jobs", ["id"], sqlite_where=jobs.c.state.in_(["queued", "running"]))
    op.create_table(
        "requests",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.Column("reply", sa.LargeBinary, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.create_index("requests_created", "requests", ["created"])
    op.create_table(
        "suppressions",
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("key", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.create_table(
        "suppression_changes",
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("op", sa.SmallInteger, nullable=False),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
