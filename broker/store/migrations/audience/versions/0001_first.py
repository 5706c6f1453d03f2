"""The first tables of audience.db: lists, the shapes of their rows, subscribers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of a new file."""
    op.create_table(
        "lists",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("fields", sa.LargeBinary, nullable=False),
        sa.Column("subscribed", sa.Integer, nullable=False),
        sa.Column("unsubscribed", sa.Integer, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("changed", sa.Double, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "shapes",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("list", sa.Integer, sa.ForeignKey("lists.id", ondelete="CASCADE"), nullable=False),
        sa.Column("names", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("list", "names"),
    )
    op.create_table(
        "subscribers",
        sa.Column("list", sa.Integer, primary_key=True),
        sa.Column("key", sa.LargeBinary, primary_key=True),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("shape", sa.Integer, nullable=False),
        sa.Column("fields", sa.LargeBinary, nullable=False),
        sa.Column("changed", sa.Double, nullable=False),
        sqlite_with_rowid=False,
    )
