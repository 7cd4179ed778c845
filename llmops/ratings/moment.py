"""What a campaign's rows say at one moment, inside a transaction: answers, votes, and what is in view.

`answers_in` reads every row anew; what is asked at every vote is kept up by `llmops.ratings.tally` instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, select

from llmops.ratings.withdrawn import withdrawn_of
from llmops.settings import stamp
from llmops.tables import ratings, showings

LEASE_S = 600.0
"""How long an item that is shown to one rater is kept from others who would give a vote too many."""

_WITHOUT_ANSWER = (
    select(showings.c.id, showings.c.item, showings.c.rater, showings.c.left, showings.c.at)
    .where(showings.c.campaign == bindparam("of"), showings.c.open)
    .order_by(showings.c.at.desc())
)


@dataclass(frozen=True)
class Answers:
    """The live answers of a campaign: votes an item, and which pairs of item and rater are answered.

    `answered` tells which answer stood left, skips too, oldest first. `raters` are those with a vote that counts.
    """

    votes: Counter[str]
    answered: dict[tuple[str, str], int]
    raters: frozenset[str]

    def by(self, rater: str) -> dict[str, int]:
        """Items this rater rated or skipped, oldest first, with what stood left."""
        return {item: left for (item, who), left in self.answered.items() if who == rater}


def answers_in(connection: Connection, campaign: str) -> Answers:
    """The live answers of a campaign (a digest); what was taken back is none."""
    c = ratings.c
    query = select(c.item, c.rater, c.choice, c.left).where(c.campaign == campaign, c.live)
    rows = connection.execute(query.where(c.choice != "undone").order_by(c.number)).all()
    gone = withdrawn_of(connection)
    votes = [row for row in rows if row.choice != "skip" and row.rater not in gone]
    return Answers(
        Counter(row.item for row in votes),
        {(row.item, row.rater): row.left for row in rows},
        frozenset(row.rater for row in votes),
    )


def showings_without_answer(connection: Connection, campaign: str) -> Sequence[Any]:
    """All showings of a campaign that may lack an answer, newest first: (id, item, rater, left, at).

    Some are answered nonetheless, where a row was brought back from a backup of before they were marked: who asks
    compares with the answers.
    """
    return connection.execute(_WITHOUT_ANSWER, {"of": campaign}).all()


def lease_start() -> str:
    """What was shown later than this is still its rater's; leases that ran out are compared here, nothing ends them."""
    since = datetime.now(UTC) - timedelta(seconds=LEASE_S)
    return stamp(since)
