"""What the rating page may ask: each call takes the browser's JSON and returns what to draw, by the book of ratings.

A reply tells a rater's item, its texts as they stand and the showing's opaque id; which answer is which system's, and
on which side it was put, stay in the database. No state lies here, so a restart of the page costs nothing.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from llmops.errors import BadRequest, LlmopsError
from llmops.ratings.book import MAX_RATER_CHARACTERS, RatingBook, Showing, require_rater
from llmops.ratings.campaigns import campaigns, find_campaign, is_closed
from llmops.ratings.outcomes import live
from llmops.records import Campaign
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict

CHOICE_OF = {"a": "left", "b": "right", "tie": "tie", "both_bad": "both_bad", "skip": "skip"}
"""What the page calls an answer, and what the book calls it: A stands on the left."""

log = logging.getLogger("llmops.feedback")


class Call(BaseModel):
    """What the browser sends with each call."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rater: str = Field(max_length=4 * MAX_RATER_CHARACTERS)
    """The name as it was typed."""
    showing: str = Field(default="", max_length=64)
    """Id of the showing that is answered."""
    choice: str = Field(default="", max_length=16)
    """The answer, one of `CHOICE_OF`."""
    before: int | None = None
    """Number of the rating whose predecessor is wanted; None for the newest."""


class Desk:
    """What the page may ask: each call takes the browser's JSON and returns what to draw, or `error` with one line."""

    def __init__(self, book: RatingBook) -> None:
        """Answer from one campaign's book."""
        self._book = book

    def next_item(self, call: object) -> JsonDict:
        """The item a rater has to answer now; none in the reply when nothing is left for them."""
        return _told(lambda: self._now(_parse(call).rater))

    def rate_item(self, call: object) -> JsonDict:
        """Write an answer; `saved` in the reply is its number, there only when it is durable. With the next item."""

        def rate() -> JsonDict:
            asked = _parse(call)
            if asked.choice not in CHOICE_OF:
                raise BadRequest(
                    f"rating: {asked.choice!r} is not an answer; give one of {', '.join(CHOICE_OF)}"
                )
            self._book.shown(asked.showing, asked.rater)  # refuses a showing that was another rater's
            rating = self._book.rate(asked.showing, CHOICE_OF[asked.choice])
            return {**_told(lambda: self._now(asked.rater)), "saved": rating.number}

        return _told(rate)

    def last_item(self, call: object) -> JsonDict:
        """The item a rater answered last, or before the rating `before`, on the sides it had; none before the first."""

        def back() -> JsonDict:
            asked = _parse(call)
            rater = require_rater(asked.rater)
            mine = [r for r in live(self._book.ratings()) if r.rater == rater]
            earlier = [r for r in mine if asked.before is None or r.number < asked.before]
            if not earlier:
                return {"item": None}
            last = earlier[-1]
            said = next(name for name, choice in CHOICE_OF.items() if choice == last.choice)
            shown = self._book.shown(last.showing, asked.rater)
            return {"item": _drawn(shown), "given": {"number": last.number, "choice": said}}

        return _told(back)

    def _now(self, rater: str) -> JsonDict:
        showing = self._book.next(rater)
        return {
            "rater": rater,
            "question": self._book.campaign.question,
            "standing": self._book.standing(rater).__dict__,
            "item": _drawn(showing) if showing else None,
        }


def _told(answer: Callable[[], JsonDict]) -> JsonDict:
    """An answer, or the one line that says why there is none."""
    try:
        return answer()
    except LlmopsError as error:
        return {"error": str(error)}
    except SQLAlchemyError as error:
        log.exception("rating page: the database failed")
        reason = getattr(error, "orig", None) or type(error).__name__
        return {"error": f"database: could not be used ({reason}); try again, or tell who runs the page"}


def _parse(call: object) -> Call:
    try:
        asked = Call.model_validate(call)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "call"
        raise BadRequest(f"page: {where}: {first['msg']}; reload the page") from None
    # One person's name has one spelling, however their keyboard composes it.
    rater = " ".join(unicodedata.normalize("NFC", asked.rater).split())
    require_rater(rater)
    return asked.model_copy(update={"rater": rater})


def _drawn(showing: Showing) -> JsonDict:
    """What the browser is told of a showing: the texts as they stand, never whose they are."""
    messages = [m.to_turn() for m in showing.item.messages]
    return {"showing": showing.id, "messages": messages, "texts": list(showing.texts)}


def choose_campaign(registry: Registry, reference: str | None) -> Campaign:
    """The campaign that is meant, which must be open; None means the newest open one.

    Raises:
        BadRequest: there is none, or it is closed.
        InvalidEvidence: its record is gone from the store, or altered.
    """
    store, ledger = registry.store, registry.ledger
    if reference is not None:
        found = find_campaign(store, ledger, reference)
        if is_closed(ledger, found.digest()):
            raise BadRequest(f"campaign {found.name}: is closed; open another one to rate")
        return found
    for campaign in reversed(campaigns(store, ledger)):
        if not is_closed(ledger, campaign.digest()):
            return campaign
    raise BadRequest("campaign: none is open here; run `llmops feedback open` with a campaign's YAML file")
