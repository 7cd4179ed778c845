"""What raters say beside their choice, texts that can be deleted, and raters who withdrew.

Revision 0003.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_OF_RATINGS = (
    ("tags", sa.Text),
    ("scores", sa.Text),
    ("note", sa.String(64)),
    ("edit", sa.String(64)),
    ("pins", sa.String(64)),
    ("dwell_ms", sa.Integer),
    ("key", sa.String(64)),
)


def upgrade() -> None:
    """Add the columns and make the tables."""
    op.add_column("showings", sa.Column("first_at", sa.String(32), nullable=True))
    for name, kind in _OF_RATINGS:
        op.add_column("ratings", sa.Column(name, kind, nullable=True))
    op.create_index("uq_ratings_key", "ratings", ["showing", "key"], unique=True)
    op.create_table(
        "rating_texts",
        sa.Column("rating", sa.String(64), primary_key=True),
        sa.Column("field", sa.String(8), primary_key=True),
        sa.Column("salt", sa.String(32), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_table(
        "item_texts",
        sa.Column("campaign", sa.String(64), primary_key=True),
        sa.Column("item", sa.String(64), primary_key=True),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(128), nullable=True),
        sa.Column("key", sa.String(16), nullable=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
    )
    op.create_index("ix_item_texts_owner", "item_texts", ["owner"])
    op.create_table(
        "withdrawn_raters",
        sa.Column("rater", sa.String(128), primary_key=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=True),
        sa.Column("event", sa.Integer, nullable=False),
        sa.Column("texts_deleted", sa.Boolean, nullable=False),
    )


def downgrade() -> None:
    """Drop the tables and the columns."""
    for table in ("withdrawn_raters", "item_texts", "rating_texts"):
        op.drop_table(table)
    op.drop_index("uq_ratings_key", "ratings")
    for name, _ in reversed(_OF_RATINGS):
        op.drop_column("ratings", name)
    op.drop_column("showings", "first_at")
