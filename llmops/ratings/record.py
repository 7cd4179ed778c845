"""The rows of one campaign, read: ratings, what raters wrote, what was shown when, who withdrew. Writes nothing."""

from __future__ import annotations

from sqlalchemy import select

from llmops.ledger import Ledger
from llmops.ratings.added import deleted_items
from llmops.ratings.moment import answers_in, lease_start, showings_without_answer
from llmops.ratings.rows import read_ratings, texts_of
from llmops.ratings.withdrawn import withdrawn_of
from llmops.records import Campaign, Rating
from llmops.tables import ratings, showings


class CampaignRows:
    """What the database holds of one campaign."""

    def __init__(self, ledger: Ledger, campaign: Campaign) -> None:
        """Nothing is read yet."""
        self.campaign = campaign
        self._digest = campaign.digest()
        self._ledger = ledger

    def ratings(self) -> list[Rating]:
        """All ratings of the campaign, superseded ones too, by number."""
        with self._ledger.engine.connect() as connection:
            return read_ratings(connection, ratings.c.campaign == self._digest)

    def texts(self) -> dict[tuple[str, str], str]:
        """What raters of the campaign wrote, by (rating, `note` or `edit`); what was deleted is not among it."""
        with self._ledger.engine.connect() as connection:
            return texts_of(connection, {row.digest for row in self.ratings()})

    def deleted(self) -> list[str]:
        """Digests of the items whose texts were deleted on demand."""
        with self._ledger.engine.connect() as connection:
            return sorted(deleted_items(connection, self._digest))

    def n_open(self) -> int:
        """How many unanswered items somebody looks at now."""
        with self._ledger.engine.connect() as connection:
            since, answers = lease_start(), answers_in(connection, self._digest)
            rows = showings_without_answer(connection, self._digest)
        return len({(row.item, row.rater) for row in rows if row.at > since} - answers.answered.keys())

    def first_shown(self) -> dict[str, str]:
        """When each showing was drawn, by its id; those of before this was kept are not among it."""
        query = select(showings.c.id, showings.c.first_at).where(showings.c.campaign == self._digest)
        with self._ledger.engine.connect() as connection:
            return {row.id: row.first_at for row in connection.execute(query) if row.first_at is not None}

    def withdrawn(self) -> frozenset[str]:
        """The raters of this campaign who have withdrawn."""
        query = select(ratings.c.rater).where(ratings.c.campaign == self._digest).distinct()
        with self._ledger.engine.connect() as connection:
            return frozenset(connection.execute(query).scalars()) & withdrawn_of(connection)
