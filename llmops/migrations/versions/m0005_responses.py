"""Which model gave every response, texts of a sample of them, and what people said of them.

Revision 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the three tables and their indexes."""
    _make_responses()
    _make_feedback()


def _make_responses() -> None:
    op.create_table(
        "responses",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("at", sa.String(32), nullable=False, index=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("user", sa.String(32), nullable=True),
        sa.Column("asked", sa.String(200), nullable=False),
        sa.Column("adapter", sa.String(64), nullable=False),
        sa.Column("lineage", sa.String(64), nullable=True),
        sa.Column("arm", sa.String(64), nullable=True),
        sa.Column("shadow_of", sa.String(128), nullable=True),
        sa.Column("n_answers", sa.Integer, nullable=False),
        sa.Column("complete", sa.Boolean, nullable=False),
    )
    op.create_table(
        "captures",
        sa.Column("response", sa.String(128), primary_key=True),
        sa.Column("at", sa.String(32), nullable=False, index=True),
        sa.Column("key", sa.String(16), nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("n_bytes", sa.Integer, nullable=False),
        sa.Column("n_redacted", sa.Integer, nullable=False),
    )


def _make_feedback() -> None:
    op.create_table(
        "feedback",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("response", sa.String(128), nullable=False, index=True),
        sa.Column("choice", sa.Integer, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("user", sa.String(32), nullable=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("thumb", sa.String(8), nullable=True),
        sa.Column("score", sa.Integer, nullable=True),
        sa.Column("over", sa.String(128), nullable=True),
        sa.Column("over_choice", sa.Integer, nullable=True),
        sa.Column("corrected", sa.Boolean, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("idempotency", sa.String(128), nullable=True),
        sa.Column("key", sa.String(16), nullable=True),
        sa.Column("payload", sa.Text, nullable=True),
    )
    op.create_index("uq_feedback_idempotency", "feedback", ["tenant", "idempotency"], unique=True)


def downgrade() -> None:
    """Drop the three tables."""
    for table in ("feedback", "captures", "responses"):
        op.drop_table(table)
