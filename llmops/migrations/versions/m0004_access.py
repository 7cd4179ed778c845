"""Who may call, the salts that hide names, and what was used.

Revision 0004.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "access_keys",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("revision", sa.Integer, nullable=False, unique=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("hash", sa.String(256), nullable=False, unique=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("names", sa.Text, nullable=True),
        sa.Column("requests_per_minute", sa.BigInteger, nullable=True),
        sa.Column("tokens_per_minute", sa.BigInteger, nullable=True),
        sa.Column("tokens_per_day", sa.BigInteger, nullable=True),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("expires_at", sa.String(32), nullable=True),
        sa.Column("revoked_at", sa.String(32), nullable=True),
    )
    live = sa.text("kind = 'password' AND revoked_at IS NULL")
    op.create_index(
        "uq_access_keys_password",
        "access_keys",
        ["name"],
        unique=True,
        sqlite_where=live,
        postgresql_where=live,
    )
    op.create_table(
        "salts",
        sa.Column("purpose", sa.String(16), primary_key=True),
        sa.Column("value", sa.String(64), nullable=False),
    )
    names = ("day", 10), ("key", 16), ("tenant", 64), ("model", 200), ("adapter", 64), ("currency", 8)
    counts = "n_requests", "n_errors", "n_estimated", "n_prompt_tokens", "n_completion_tokens"
    op.create_table(
        "usage",
        *(sa.Column(name, sa.String(length), primary_key=True) for name, length in names),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in counts),
        sa.Column("cost", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    for name in ("usage", "salts", "access_keys"):
        op.drop_table(name)
