"""What a campaign's rows say at one moment, inside the transaction that acts on it: answers, votes, open showings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select

from llmops.ratings.withdrawn import withdrawn_of
from llmops.settings import stamp
from llmops.tables import ratings, showings

LEASE_S = 600.0
"""How long an item that is shown to one rater is kept from others who would give a vote too many."""


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


def open_showings(connection: Connection, campaign: str, answers: Answers, rater: str) -> Counter[str]:
    """How many others look at each item now; leases that ran out are compared here, nothing has to end them."""
    query = select(showings.c.item, showings.c.rater).where(
        showings.c.campaign == campaign, showings.c.at > lease_start(), showings.c.rater != rater
    )
    found = {(item, who) for item, who in connection.execute(query)}
    return Counter(item for item, _ in found - answers.answered.keys())


def shown_to(connection: Connection, campaign: str, rater: str) -> Iterator[Any]:
    """All that was ever shown to a rater, newest first."""
    query = select(showings).where(showings.c.campaign == campaign, showings.c.rater == rater)
    yield from connection.execute(query.order_by(showings.c.at.desc()))


def lease_start() -> str:
    """What was shown later than this is still its rater's."""
    since = datetime.now(UTC) - timedelta(seconds=LEASE_S)
    return stamp(since)
