"""What was learnt of relays: a mode that was stepped down, when one closes connections, whether it tripped."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "relays",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, primary_key=True),
        sa.Column("port", sa.Integer, primary_key=True),
        sa.Column("mode", sa.Integer, nullable=False),
        sa.Column("mode_until", sa.Double, nullable=False),
        sa.Column("close_count", sa.Integer, nullable=False),
        sa.Column("close_until", sa.Double, nullable=False),
        sa.Column("tripped_until", sa.Double, nullable=False),
        sa.Column("trips", sa.Integer, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
