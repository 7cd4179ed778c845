"""Which showings may still lack an answer, so that the queue reads those alone.

Revision 0006.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the mark with its index, and take it from what is answered."""
    op.add_column("showings", sa.Column("open", sa.Boolean, nullable=False, server_default=sa.true()))
    ratings = sa.table(
        "ratings", *map(sa.column, ("campaign", "item", "rater", "choice")), sa.column("live", sa.Boolean)
    )
    showings = sa.table(
        "showings", *map(sa.column, ("campaign", "item", "rater")), sa.column("open", sa.Boolean)
    )
    answered = sa.exists().where(
        ratings.c.campaign == showings.c.campaign,
        ratings.c.item == showings.c.item,
        ratings.c.rater == showings.c.rater,
        ratings.c.live,
        ratings.c.choice != "undone",
    )
    op.execute(showings.update().where(answered).values(open=False))
    op.create_index("ix_showings_open", "showings", ["campaign", "open"])


def downgrade() -> None:
    """Drop index and mark."""
    op.drop_index("ix_showings_open", "showings")
    op.drop_column("showings", "open")
