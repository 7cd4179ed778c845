"""What the book of ratings hands out: an item as one rater sees it, and what follows a saved answer."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from llmops.errors import LlmopsError
from llmops.ratings.chooser import Standing
from llmops.records import Item, Rating


@dataclass(frozen=True)
class Showing:
    """An item as one rater sees it: `left` is the index of the answer that stands on the left."""

    id: str
    item: Item
    left: int

    @property
    def texts(self) -> tuple[str, ...]:
        """The answers as they stand on the page: left, right; or the one there is."""
        return self.item.answers if self.left == 0 else self.item.answers[::-1]


@dataclass(frozen=True)
class Rated:
    """A saved rating, what its rater is to answer next, and how far the campaign is then.

    `refused` is why there is no next item, where something went wrong with it; the rating is saved all the same.
    """

    rating: Rating
    showing: Showing | None
    standing: Standing
    refused: LlmopsError | SQLAlchemyError | None = None
