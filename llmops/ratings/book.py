"""The book of ratings: who is shown what, on which side, and what they answered. Reads and writes the database.

A showing fixes an item's sides for one rater before the page draws it; a rating is written together with its ledger
event in one transaction, so what the page calls saved is durable and in the chain.
"""

from __future__ import annotations

import json
import secrets
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from sqlalchemy import Connection, func, select, update

from llmops.db import events, ratings, showings, writing
from llmops.errors import BadRequest
from llmops.ledger import Ledger, append_event
from llmops.ratings.campaigns import closed_in, is_closed, load_items
from llmops.ratings.outcomes import rating_of
from llmops.records import Campaign, Choice, Item, Rating
from llmops.settings import now
from llmops.store import Store

LEASE_S = 600.0
"""How long an item that is shown to one rater is kept from others who would give a vote too many."""
MAX_RATER_CHARACTERS = 128
CHOICES: tuple[str, ...] = get_args(Choice)


@dataclass(frozen=True)
class Showing:
    """An item as one rater sees it: `left` is the index of the answer that stands on the left."""

    id: str
    item: Item
    left: int

    @property
    def texts(self) -> tuple[str, str]:
        """The answers as they stand on the page: left, right."""
        return self.item.answers[self.left], self.item.answers[1 - self.left]


@dataclass(frozen=True)
class Standing:
    """How far a campaign is: items in all, with enough votes, and rated or skipped by this rater."""

    n_items: int
    n_full: int
    n_mine: int


@dataclass(frozen=True)
class _Answers:
    """The live ratings at one moment: votes an item, items a rater, and which pairs of both are answered."""

    votes: Counter[str]
    answered: frozenset[tuple[str, str]]  # (item, rater), skips too

    def by(self, rater: str) -> set[str]:
        """Items this rater rated or skipped."""
        return {item for item, who in self.answered if who == rater}


class RatingBook:
    """The showings and ratings of one campaign."""

    def __init__(self, store: Store, ledger: Ledger, campaign: Campaign) -> None:
        """Read the campaign's items (verified)."""
        self.campaign = campaign
        self._digest = campaign.digest()
        self._ledger = ledger
        self._items = load_items(store, campaign)
        self._by_digest = {item.digest: item for item in self._items}

    def next(self, rater: str) -> Showing | None:
        """The next item for a rater, its sides drawn and kept; None when there is none left for them.

        A rater who was shown an item and did not answer gets the same showing again, sides and all, so reloading a page
        changes nothing; after `LEASE_S` only while the item still lacks votes. Otherwise: of the items they have not
        rated and that lack votes, the one with the fewest votes and open showings, in the campaign's order.

        Raises:
            BadRequest: no usable rater name, or the campaign is closed.
            StoreError: the database did not take it.
        """
        rater = require_rater(rater)
        with writing(self._ledger.engine) as connection:
            self._require_open(connection)
            answers = self._answers(connection)
            load = answers.votes + self._leases(connection, answers, rater)
            showing = self._waiting(connection, rater, answers.by(rater), load)
            if showing is not None:
                connection.execute(update(showings).where(showings.c.id == showing.id).values(at=now()))
                return showing
            item = self._choose(answers.by(rater), load)
            if item is None:
                return None
            showing = Showing(secrets.token_hex(16), item, secrets.randbelow(2))
            connection.execute(
                showings.insert().values(
                    id=showing.id, campaign=self._digest, item=item.digest, rater=rater, left=showing.left, at=now()
                )
            )  # fmt: skip
            return showing

    def rate(self, showing: str, choice: str) -> Rating:
        """Write what the rater of a showing answered; durable, and in the ledger, when this returns.

        The same answer to the same showing again is the same rating; another answer supersedes the earlier one.

        Raises:
            BadRequest: no such showing or choice, or the campaign is closed.
            StoreError: the database did not take it; nothing is saved.
        """
        if choice not in CHOICES:
            raise BadRequest(f"rating: {choice!r} is not an answer; give one of {', '.join(CHOICES)}")
        with writing(self._ledger.engine) as connection:
            row = connection.execute(select(showings).where(showings.c.id == showing)).one_or_none()
            if row is None or row.campaign != self._digest:
                raise BadRequest(f"rating: showing {showing!r} is not of this campaign; reload the page")
            same = (
                ratings.c.campaign == self._digest,
                ratings.c.item == row.item,
                ratings.c.rater == row.rater,
            )
            before = next(iter(_read(connection, *same, ratings.c.live)), None)
            # Before the campaign is asked: whoever repeats a saved answer must hear that it is saved.
            if before and (before.showing, before.choice) == (showing, choice):
                return before
            self._require_open(connection)
            return self._write(connection, row, choice, before)

    def shown(self, showing: str, rater: str) -> Showing:
        """A showing of this rater's again, to look at or change the answer.

        Raises:
            BadRequest: there is no such showing, or it is another rater's.
        """
        rater = require_rater(rater)
        with self._ledger.engine.connect() as connection:
            row = connection.execute(select(showings).where(showings.c.id == showing)).one_or_none()
        if row is None or (row.campaign, row.rater) != (self._digest, rater):
            raise BadRequest(
                f"rating: showing {showing!r} is not of this campaign and rater; reload the page"
            )
        return self._showing(row)

    def ratings(self) -> list[Rating]:
        """All ratings of the campaign, superseded ones too, by number."""
        with self._ledger.engine.connect() as connection:
            return _read(connection, ratings.c.campaign == self._digest)

    def items(self) -> list[Item]:
        """The campaign's items in the order they are asked."""
        return list(self._items)

    def standing(self, rater: str | None = None) -> Standing:
        """How far the campaign is, and how many items this rater rated or skipped."""
        with self._ledger.engine.connect() as connection:
            answers = self._answers(connection)
        n_full = sum(answers.votes[digest] >= self.campaign.votes_per_item for digest in self._by_digest)
        n_mine = len(answers.by(require_rater(rater))) if rater else 0
        return Standing(len(self._items), n_full, n_mine)

    def settled(self) -> bool:
        """Whether votes may be looked at without choosing when to stop: every item has its votes, or it is closed."""
        # Closing is asked first: what is closed gets no votes after that.
        if is_closed(self._ledger, self._digest):
            return True
        standing = self.standing()
        return standing.n_full == standing.n_items

    # ------------------------------------------------------------ inside a transaction

    def _answers(self, connection: Connection) -> _Answers:
        query = select(ratings.c.item, ratings.c.rater, ratings.c.choice)
        rows = connection.execute(query.where(ratings.c.campaign == self._digest, ratings.c.live)).all()
        votes = Counter(item for item, _, choice in rows if choice != "skip")
        return _Answers(votes, frozenset((item, rater) for item, rater, _ in rows))

    def _leases(self, connection: Connection, answers: _Answers, rater: str) -> Counter[str]:
        """How many others look at each item now."""
        query = select(showings.c.item, showings.c.rater).where(
            showings.c.campaign == self._digest, showings.c.at > _lease_start(), showings.c.rater != rater
        )
        found = {(item, who) for item, who in connection.execute(query)}
        return Counter(item for item, _ in found - answers.answered)

    def _waiting(
        self, connection: Connection, rater: str, done: set[str], load: Mapping[str, int]
    ) -> Showing | None:
        """What this rater was shown and has not answered: while it is theirs, or may be again."""
        query = select(showings).where(showings.c.campaign == self._digest, showings.c.rater == rater)
        since = _lease_start()
        for row in connection.execute(query.order_by(showings.c.at.desc())):
            lacks_votes = load.get(row.item, 0) < self.campaign.votes_per_item
            if row.item not in done and (row.at > since or lacks_votes):
                return self._showing(row)
        return None

    def _choose(self, done: set[str], load: Mapping[str, int]) -> Item | None:
        limit = self.campaign.votes_per_item
        free = [d for d in self._by_digest if d not in done and load.get(d, 0) < limit]
        return self._by_digest[min(free, key=lambda d: load.get(d, 0))] if free else None

    def _write(self, connection: Connection, row: Any, choice: str, before: Rating | None) -> Rating:
        number = _last_number(connection) + 1
        rating = Rating(
            number=number, campaign=self._digest, item=row.item, rater=row.rater, showing=row.id, left=row.left,
            choice=choice, at=now(), supersedes=before.digest if before else None,  # type: ignore[arg-type]
        )  # fmt: skip
        if before is not None:
            connection.execute(update(ratings).where(ratings.c.digest == before.digest).values(live=False))
        connection.execute(ratings.insert().values(**rating.__dict__, digest=rating.digest, live=True))
        body = {"rating": rating.digest, "campaign": self._digest, "item": row.item, "number": number}
        append_event(connection, "rating.given", body)
        return rating

    def _showing(self, row: Any) -> Showing:
        return Showing(row.id, self._by_digest[row.item], row.left)

    def _require_open(self, connection: Connection) -> None:
        # Under the write lock: a campaign that is closed meanwhile has no rating after its end.
        if closed_in(connection, self._digest):
            raise BadRequest(f"campaign {self.campaign.name}: is closed; it takes no more ratings")


def require_rater(rater: str) -> str:
    """A rater's name in one form (spaces, letter case, Unicode), so that one person is one rater.

    Raises:
        BadRequest: empty, longer than 128 characters, or not printable.
    """
    name = unicodedata.normalize("NFKC", rater).casefold().strip()
    if not name or len(name) > MAX_RATER_CHARACTERS or not name.isprintable():
        raise BadRequest(
            f"rater {rater[:40]!r}: give a name of 1 to {MAX_RATER_CHARACTERS} printable characters"
        )
    return name


def _last_number(connection: Connection) -> int:
    """The highest number ever given, by ledger and rows: one whose row was deleted is not given to another."""
    told = select(events.c.body).where(events.c.kind == "rating.given").order_by(events.c.seq.desc()).limit(1)
    body = connection.execute(told).scalar()
    highest = connection.execute(select(func.max(ratings.c.number))).scalar() or 0
    return max(highest, int(json.loads(body)["number"]) if body else 0)


def _lease_start() -> str:
    since = datetime.now(UTC) - timedelta(seconds=LEASE_S)
    return since.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _read(connection: Connection, *where: Any) -> list[Rating]:
    rows = connection.execute(select(ratings).where(*where).order_by(ratings.c.number)).mappings()
    return [rating_of({**row}) for row in rows]
