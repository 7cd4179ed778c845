"""The book of ratings: who is shown what, on which side, and what they answered. Reads and writes the database.

A showing fixes an item's sides for one rater before the page draws it; a rating is written together with its ledger
event in one transaction, so what the page calls saved is durable and in the chain.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.exc import SQLAlchemyError

from llmops.db import BUSY_TIMEOUT_MS, writing
from llmops.errors import BadRequest, LlmopsError, StoreError
from llmops.ledger import Ledger
from llmops.ratings.added import Owned, add_in
from llmops.ratings.campaigns import is_added_to, is_closed, load_items
from llmops.ratings.chooser import Chooser, Standing
from llmops.ratings.moment import LEASE_S
from llmops.ratings.queue import Need, Turnout
from llmops.ratings.raters import MAX_RATER_CHARACTERS, require_rater
from llmops.ratings.record import CampaignRows
from llmops.ratings.rows import (
    Answer,
    Draft,
    read_ratings,
    require_answer,
    said_before,
    said_by,
    write_rating,
)
from llmops.ratings.shown import Rated, Showing
from llmops.ratings.tally import Said
from llmops.ratings.withdrawn import withdrawn_in, without
from llmops.records import Campaign, Item, Pins, Rating
from llmops.settings import now
from llmops.store import Store
from llmops.tables import ratings, showings

__all__ = [
    "LEASE_S",
    "MAX_RATER_CHARACTERS",
    "Answer",
    "Rated",
    "RatingBook",
    "Showing",
    "Standing",
    "require_rater",
]

# Built once: building a statement takes longer than running it.
_SHOWING = select(showings).where(showings.c.id == bindparam("which"))


class RatingBook(CampaignRows):
    """The showings and ratings of one campaign: its rows, and what is written among them. Serves all threads."""

    def __init__(self, store: Store, ledger: Ledger, campaign: Campaign) -> None:
        """Read the campaign's items (verified)."""
        super().__init__(ledger, campaign)
        self._lock = threading.Lock()
        self._ahead = False
        self._chooser = Chooser(campaign, load_items(store, campaign))
        if is_added_to(campaign):
            with self._reading():
                pass

    def next(self, rater: str) -> Showing | None:
        """The next item for a rater, its sides drawn and kept; None when there is none left for them.

        A rater who was shown an item and did not answer gets the same showing again, sides and all, so reloading a page
        changes nothing; after `LEASE_S` only while the item still lacks votes. Otherwise a gold item or a repeat when
        one is due, and else what brings a decision nearest (`llmops.ratings.queue`).

        Raises:
            BadRequest: no usable rater name, the rater has withdrawn, or the campaign is closed.
            StoreError: the database did not take it.
        """
        rater = require_rater(rater)
        with self._writing() as connection:
            return self._next(connection, rater)

    def rate(self, showing: str, answer: Answer | str) -> Rating:
        """Write what the rater of a showing answered; durable, and in the ledger, when this returns.

        The same answer to the same showing again is the same rating, and so is everything under a key that was used
        before; another answer supersedes the earlier one.

        Raises:
            BadRequest: no such showing or choice, nothing to take back, or the campaign is closed.
            StoreError: the database did not take it; nothing is saved.
        """
        given = Answer(answer) if isinstance(answer, str) else answer
        require_answer(given, self.campaign.kind)
        with self._writing() as connection:
            return self._rate(connection, showing, given)

    def rate_and_next(self, showing: str, answer: Answer, rater: str) -> Rated:
        """`rate` what was shown to this rater, and `next`, in one transaction: durable when this returns.

        Raises:
            BadRequest: as `rate`, or the showing is another rater's.
            StoreError: the database did not take it; nothing is saved.
        """
        require_answer(answer, self.campaign.kind)
        rater, found, refused = require_rater(rater), None, None
        with self._writing() as connection:
            rating = self._rate(connection, showing, answer, rater)
            try:
                with connection.begin_nested():
                    found = self._next(connection, rater)
            except (LlmopsError, SQLAlchemyError) as error:
                refused = error
            standing = self._chooser.standing(rater)
        return Rated(rating, found, standing, refused)

    def shown(self, showing: str, rater: str) -> Showing:
        """A showing of this rater's again, to look at or change the answer.

        Raises:
            BadRequest: there is no such showing, it is another rater's, or its texts were deleted.
        """
        rater = require_rater(rater)
        with self._reading() as connection:
            return self._showing(self._shown(connection, showing, rater))

    def answered_last(self, rater: str, before: int | None = None) -> Rating | None:
        """What a rater answered or skipped last, or before the rating with the number `before`; None before the first.

        What was taken back is none.
        """
        rater = require_rater(rater)
        with self._reading() as connection:
            numbers = [said.number for said in self._chooser.by(rater).values()]
            earlier = [number for number in numbers if before is None or number < before]
            return read_ratings(connection, ratings.c.number == earlier[-1])[0] if earlier else None

    def add(self, items: list[Owned], rater: str | None = None) -> Showing | None:
        """Put more items before the raters of a campaign of typed or captured prompts.

        With `rater` the first of them is shown to that rater at once, its sides drawn and kept.

        Raises:
            BadRequest: the campaign's items are frozen, the rater may not rate, or the campaign is closed.
        """
        if not is_added_to(self.campaign):
            raise BadRequest(f"campaign {self.campaign.name}: its items are frozen; none can join them")
        with self._writing() as connection:
            who = require_rater(rater) if rater is not None else ""
            self._require_open(who)
            new = add_in(connection, self.campaign, items)
            self._ahead = True
            self._chooser.follow(connection)
            return self._show(connection, new[0], who, {}) if new and who else None

    def evidence(self) -> list[Rating]:
        """The ratings that count, superseded ones too: neither of gold items or repeats, nor of raters who withdrew."""
        with self._ledger.engine.connect() as connection:
            taken_back = withdrawn_in(connection)
        counting = self._chooser.counting
        return [row for row in without(self.ratings(), taken_back) if row.item in counting]

    def items(self) -> list[Item]:
        """The items that count, in the campaign's order."""
        return list(self._chooser.counting.values())

    def all_items(self) -> list[Item]:
        """All items in the campaign's order, gold ones and repeats too."""
        return list(self._chooser.by_digest.values())

    def standing(self, rater: str | None = None) -> Standing:
        """How far the campaign is, and how many items this rater rated or skipped."""
        with self._reading():
            return self._chooser.standing(require_rater(rater) if rater else None)

    def votes_of(self, item: Item) -> int:
        """How many votes an item is to have."""
        return self._chooser.votes_of(item)

    def settled(self) -> bool:
        """Whether votes may be looked at without choosing when to stop: every item has its votes, or it is closed."""
        # Closing is asked first: what is closed gets no votes after that.
        if is_closed(self._ledger, self._digest):
            return True
        standing = self.standing()
        return standing.n_full == standing.n_items and self.campaign.origin != "typed"

    def queue(self) -> tuple[list[Need], Turnout]:
        """The items that count as the queue sees them when nobody looks at any, and who has voted."""
        with self._reading():
            return self._chooser.needs()

    # ------------------------------------------------------------ transactions

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A write, with everything that is new taken in; what was taken in ahead of a failed end is forgotten."""
        with self._alone():
            try:
                with writing(self._ledger.engine) as connection:
                    self._chooser.follow(connection)
                    yield connection
                self._ahead = False
            finally:
                if self._ahead:
                    self._chooser.forget()
                    self._ahead = False

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._alone(), self._ledger.engine.connect() as connection:
            self._chooser.follow(connection)
            yield connection

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread at a time until its transaction has ended: what is known then is what is in the database."""
        if not self._lock.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
            raise StoreError(f"campaign {self.campaign.name}: too many answers wait; try again")
        try:
            yield
        finally:
            self._lock.release()

    # ------------------------------------------------------------ inside a transaction

    def _next(self, connection: Connection, rater: str) -> Showing | None:
        self._require_open(rater)
        view = self._chooser.in_view(connection, rater)
        row = self._chooser.waiting(view)
        if row is not None:
            connection.execute(update(showings).where(showings.c.id == row.id).values(at=now()))
            return self._showing(row)
        item = self._chooser.choose(rater, view)
        return None if item is None else self._show(connection, item, rater, self._chooser.by(rater))

    def _rate(self, connection: Connection, showing: str, given: Answer, rater: str | None = None) -> Rating:
        row = self._shown(connection, showing, rater)
        known, before = said_before(connection, row, given.key)
        if known is not None:
            if said_by(connection, known) != given.said:
                raise BadRequest(
                    "rating: this key was given with another answer before; draw a new one for each"
                )
            return known
        # Before the campaign is asked: whoever repeats a saved answer must hear that it is saved.
        if before and before.showing == showing and said_by(connection, before) == given.said:
            return before
        if given.choice == "undone" and before is None:
            raise BadRequest("rating: there is nothing to take back; answer the item first")
        self._require_open(row.rater)
        return self._write(connection, row, given, before)

    def _show(self, connection: Connection, item: Item, rater: str, done: Mapping[str, Said]) -> Showing:
        two = len(item.answers) > 1
        left = secrets.randbelow(2) if two else 0
        if item.repeat_of is not None and item.repeat_of in done:
            left = 1 - done[item.repeat_of].left
        showing, at = Showing(secrets.token_hex(16), item, left if two else 0), now()
        row = {"id": showing.id, "campaign": self._digest, "item": item.digest, "rater": rater}
        connection.execute(showings.insert().values(**row, left=showing.left, at=at, first_at=at, open=True))
        return showing

    def _shown(self, connection: Connection, showing: str, rater: str | None) -> Any:
        """A showing's row, of this rater when one is named."""
        row = connection.execute(_SHOWING, {"which": showing}).one_or_none()
        if row is None or row.campaign != self._digest or rater not in (None, row.rater):
            whose = "campaign" if rater is None else "campaign and rater"
            raise BadRequest(f"rating: showing {showing!r} is not of this {whose}; reload the page")
        if row.item not in self._chooser.by_digest:
            raise BadRequest("rating: the texts of this item were deleted meanwhile; reload the page")
        return row

    def _write(self, connection: Connection, row: Any, given: Answer, before: Rating | None) -> Rating:
        pins = Pins.of(self.campaign, self._chooser.by_digest[row.item]).digest
        draft = Draft(
            self._digest, row.item, row.rater, row.id, row.left, given, now(), pins,
            before.digest if before else None,
        )  # fmt: skip
        rating = write_rating(connection, draft)
        self._ahead = True
        self._chooser.take(rating)
        return rating

    def _showing(self, row: Any) -> Showing:
        return Showing(row.id, self._chooser.by_digest[row.item], row.left)

    def _require_open(self, rater: str) -> None:
        # Under the write lock: a campaign that is closed meanwhile has no rating after its end.
        if self._chooser.is_closed:
            raise BadRequest(f"campaign {self.campaign.name}: is closed; it takes no more ratings")
        if rater and self._chooser.is_withdrawn(rater):
            raise BadRequest(f"rater {rater!r}: has withdrawn; ratings under this name are no longer taken")
