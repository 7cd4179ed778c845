"""The book of ratings: who is shown what, on which side, and what they answered. Reads and writes the database.

A showing fixes an item's sides for one rater before the page draws it; a rating is written together with its ledger
event in one transaction, so what the page calls saved is durable and in the chain.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, update

from llmops.db import writing
from llmops.errors import BadRequest
from llmops.ledger import Ledger
from llmops.ratings.added import Owned, add_in, added_items
from llmops.ratings.campaigns import closed_in, is_added_to, is_closed, load_items
from llmops.ratings.moment import LEASE_S, Answers, answers_in, lease_start, open_showings, shown_to
from llmops.ratings.queue import Need, Turnout, is_gold_due, next_item, repeat_for
from llmops.ratings.raters import MAX_RATER_CHARACTERS, require_rater
from llmops.ratings.record import CampaignRows
from llmops.ratings.rows import Answer, Draft, read_ratings, require_answer, said_by, write_rating
from llmops.ratings.withdrawn import is_withdrawn, withdrawn_in, without
from llmops.records import Campaign, Item, Pins, Rating
from llmops.settings import now
from llmops.store import Store
from llmops.tables import ratings, showings

__all__ = ["LEASE_S", "MAX_RATER_CHARACTERS", "Answer", "RatingBook", "Showing", "Standing", "require_rater"]


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
class Standing:
    """How far a campaign is, of its items that count: in all, with enough votes, and rated or skipped by this rater."""

    n_items: int
    n_full: int
    n_mine: int


class RatingBook(CampaignRows):
    """The showings and ratings of one campaign: its rows, and what is written among them."""

    def __init__(self, store: Store, ledger: Ledger, campaign: Campaign) -> None:
        """Read the campaign's items (verified)."""
        super().__init__(ledger, campaign)
        self._index(load_items(store, campaign))
        if is_added_to(campaign):
            with ledger.engine.connect() as connection:
                self._refresh(connection)

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
        with writing(self._ledger.engine) as connection:
            self._require_open(connection, rater)
            answers = answers_in(connection, self._digest)
            load = answers.votes + open_showings(connection, self._digest, answers, rater)
            showing = self._waiting(connection, rater, answers.by(rater), load)
            if showing is not None:
                connection.execute(update(showings).where(showings.c.id == showing.id).values(at=now()))
                return showing
            item = self._choose(rater, answers, load)
            return None if item is None else self._show(connection, item, rater, answers.by(rater))

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
        with writing(self._ledger.engine) as connection:
            row = self._shown(connection, showing)
            known = self._by_key(connection, row, given)
            if known is not None:
                return known
            same = (
                ratings.c.campaign == self._digest,
                ratings.c.item == row.item,
                ratings.c.rater == row.rater,
            )
            before = next(iter(read_ratings(connection, *same, ratings.c.live)), None)
            # Before the campaign is asked: whoever repeats a saved answer must hear that it is saved.
            if before and before.showing == showing and said_by(connection, before) == given.said:
                return before
            if given.choice == "undone" and before is None:
                raise BadRequest("rating: there is nothing to take back; answer the item first")
            self._require_open(connection, row.rater)
            return self._write(connection, row, given, before)

    def shown(self, showing: str, rater: str) -> Showing:
        """A showing of this rater's again, to look at or change the answer.

        Raises:
            BadRequest: there is no such showing, it is another rater's, or its texts were deleted.
        """
        rater = require_rater(rater)
        with self._ledger.engine.connect() as connection:
            row = connection.execute(select(showings).where(showings.c.id == showing)).one_or_none()
            self._refresh(connection)
        if row is None or (row.campaign, row.rater) != (self._digest, rater):
            raise BadRequest(
                f"rating: showing {showing!r} is not of this campaign and rater; reload the page"
            )
        if row.item not in self._by_digest:
            raise BadRequest("rating: the texts of this item were deleted meanwhile; reload the page")
        return self._showing(row)

    def add(self, items: list[Owned], rater: str | None = None) -> Showing | None:
        """Put more items before the raters of a campaign of typed or captured prompts.

        With `rater` the first of them is shown to that rater at once, its sides drawn and kept.

        Raises:
            BadRequest: the campaign's items are frozen, the rater may not rate, or the campaign is closed.
        """
        if not is_added_to(self.campaign):
            raise BadRequest(f"campaign {self.campaign.name}: its items are frozen; none can join them")
        with writing(self._ledger.engine) as connection:
            who = require_rater(rater) if rater is not None else ""
            self._require_open(connection, who)
            new = add_in(connection, self.campaign, items)
            self._refresh(connection)
            return self._show(connection, new[0], who, {}) if new and who else None

    def evidence(self) -> list[Rating]:
        """The ratings that count, superseded ones too: neither of gold items or repeats, nor of raters who withdrew."""
        with self._ledger.engine.connect() as connection:
            taken_back = withdrawn_in(connection)
        return [row for row in without(self.ratings(), taken_back) if row.item in self._counting]

    def items(self) -> list[Item]:
        """The items that count, in the campaign's order."""
        return list(self._counting.values())

    def all_items(self) -> list[Item]:
        """All items in the campaign's order, gold ones and repeats too."""
        return list(self._by_digest.values())

    def standing(self, rater: str | None = None) -> Standing:
        """How far the campaign is, and how many items this rater rated or skipped."""
        with self._ledger.engine.connect() as connection:
            self._refresh(connection)
            answers = answers_in(connection, self._digest)
        n_full = sum(answers.votes[digest] >= self.votes_of(i) for digest, i in self._counting.items())
        mine = answers.by(require_rater(rater)) if rater else {}
        return Standing(len(self._counting), n_full, sum(digest in mine for digest in self._counting))

    def votes_of(self, item: Item) -> int:
        """How many votes an item is to have."""
        return item.votes or self.campaign.votes_per_item

    def settled(self) -> bool:
        """Whether votes may be looked at without choosing when to stop: every item has its votes, or it is closed."""
        # Closing is asked first: what is closed gets no votes after that.
        if is_closed(self._ledger, self._digest):
            return True
        standing = self.standing()
        return standing.n_full == standing.n_items and self.campaign.origin != "typed"

    def queue(self) -> tuple[list[Need], Turnout]:
        """The items that count as the queue sees them when nobody looks at any, and who has voted."""
        with self._ledger.engine.connect() as connection:
            self._refresh(connection)
            answers = answers_in(connection, self._digest)
        return self._needs("", answers, answers.votes), Turnout(len(answers.raters), False)

    # ------------------------------------------------------------ inside a transaction

    def _refresh(self, connection: Connection) -> None:
        """Items that joined or whose texts were deleted since."""
        if is_added_to(self.campaign):
            self._index(added_items(connection, self._digest))

    def _index(self, items: Sequence[Item]) -> None:
        self._by_digest = {item.digest: item for item in items}  # an item's digest is computed anew each time
        self._counting = {digest: item for digest, item in self._by_digest.items() if item.counts}

    def _waiting(
        self, connection: Connection, rater: str, done: Mapping[str, int], load: Mapping[str, int]
    ) -> Showing | None:
        """What this rater was shown and has not answered: while it is theirs, or may be again."""
        since = lease_start()
        for row in shown_to(connection, self._digest, rater):
            item = self._by_digest.get(row.item)
            if item is None or row.item in done:
                continue
            if row.at > since or not item.counts or load.get(row.item, 0) < self.votes_of(item):
                return self._showing(row)
        return None

    def _choose(self, rater: str, answers: Answers, load: Mapping[str, int]) -> Item | None:
        done = answers.by(rater)
        others = [(digest, item) for digest, item in self._by_digest.items() if not item.counts]
        gold = next((item for digest, item in others if item.known is not None and digest not in done), None)
        if gold is not None and is_gold_due(self.campaign.gold_every, f"{self._digest}{rater}", len(done)):
            return gold
        repeat = repeat_for({digest: i for digest, i in others if i.repeat_of is not None}, list(done))
        if repeat is not None:
            return repeat
        turnout = Turnout(len(answers.raters), rater in answers.raters)
        found = next_item(self._needs(rater, answers, load), self.campaign.plan, turnout)
        return None if found is None else self._by_digest[found]

    def _needs(self, rater: str, answers: Answers, load: Mapping[str, int]) -> list[Need]:
        done = answers.by(rater)
        return [
            Need(digest, i.group, self.votes_of(i), load.get(digest, 0), digest in done)
            for digest, i in self._counting.items()
        ]

    def _show(self, connection: Connection, item: Item, rater: str, done: Mapping[str, int]) -> Showing:
        two = len(item.answers) > 1
        left = secrets.randbelow(2) if two else 0
        if item.repeat_of is not None and item.repeat_of in done:
            left = 1 - done[item.repeat_of]
        showing, at = Showing(secrets.token_hex(16), item, left if two else 0), now()
        row = {
            "id": showing.id,
            "campaign": self._digest,
            "item": item.digest,
            "rater": rater,
            "left": showing.left,
        }
        connection.execute(showings.insert().values(**row, at=at, first_at=at))
        return showing

    def _shown(self, connection: Connection, showing: str) -> Any:
        row = connection.execute(select(showings).where(showings.c.id == showing)).one_or_none()
        if row is None or row.campaign != self._digest:
            raise BadRequest(f"rating: showing {showing!r} is not of this campaign; reload the page")
        self._refresh(connection)
        if row.item not in self._by_digest:
            raise BadRequest("rating: the texts of this item were deleted meanwhile; reload the page")
        return row

    def _by_key(self, connection: Connection, row: Any, given: Answer) -> Rating | None:
        """The rating that the same click gave before."""
        if given.key is None:
            return None
        where = (ratings.c.showing == row.id, ratings.c.key == given.key)
        known = next(iter(read_ratings(connection, *where)), None)
        if known is not None and said_by(connection, known) != given.said:
            raise BadRequest("rating: this key was given with another answer before; draw a new one for each")
        return known

    def _write(self, connection: Connection, row: Any, given: Answer, before: Rating | None) -> Rating:
        pins = Pins.of(self.campaign, self._by_digest[row.item]).digest
        draft = Draft(
            self._digest, row.item, row.rater, row.id, row.left, given, now(), pins,
            before.digest if before else None,
        )  # fmt: skip
        return write_rating(connection, draft)

    def _showing(self, row: Any) -> Showing:
        return Showing(row.id, self._by_digest[row.item], row.left)

    def _require_open(self, connection: Connection, rater: str) -> None:
        # Under the write lock: a campaign that is closed meanwhile has no rating after its end.
        if closed_in(connection, self._digest):
            raise BadRequest(f"campaign {self.campaign.name}: is closed; it takes no more ratings")
        if rater and is_withdrawn(connection, rater):
            raise BadRequest(f"rater {rater!r}: has withdrawn; ratings under this name are no longer taken")
        self._refresh(connection)
