"""What raters were shown and what they answered.

Revision 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make both tables and their indexes."""
    op.create_table(
        "showings",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("campaign", sa.String(64), nullable=False),
        sa.Column("item", sa.String(64), nullable=False),
        sa.Column("rater", sa.String(128), nullable=False),
        sa.Column("left", sa.Integer, nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
    )
    op.create_index("ix_showings_campaign_item", "showings", ["campaign", "item"])
    op.create_table(
        "ratings",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("campaign", sa.String(64), nullable=False),
        sa.Column("item", sa.String(64), nullable=False),
        sa.Column("rater", sa.String(128), nullable=False),
        sa.Column("showing", sa.String(32), nullable=False),
        sa.Column("left", sa.Integer, nullable=False),
        sa.Column("choice", sa.String(16), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("supersedes", sa.String(64), nullable=True),
        sa.Column("live", sa.Boolean, nullable=False),
    )
    op.create_index("ix_ratings_campaign_item", "ratings", ["campaign", "item"])
    live: sa.ColumnClause[bool] = sa.column("live", sa.Boolean)
    columns = ["campaign", "item", "rater"]
    op.create_index(
        "uq_ratings_live", "ratings", columns, unique=True, sqlite_where=live, postgresql_where=live
    )


def downgrade() -> None:
    """Drop both tables."""
    op.drop_table("ratings")
    op.drop_table("showings")
