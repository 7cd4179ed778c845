"""The book of ratings: who is shown what, on which side, and what they answered. Reads and writes the database.

A showing fixes an item's sides for one rater before the page draws it; a rating is written together with its ledger
event in one transaction, so what the page calls saved is durable and in the chain.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from sqlalchemy import Connection, func, select, update

from llmops.db import ratings, showings, writing
from llmops.errors import BadRequest
from llmops.ledger import Ledger, append_event
from llmops.ratings.campaigns import is_closed, load_items
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

        A rater who was shown an item and did not answer gets the same showing again, so reloading a page changes
        nothing. Otherwise: of the items they have not rated and that lack votes, the one with the fewest votes and open
        showings, in the campaign's order.

        Raises:
            BadRequest: no usable rater name, or the campaign is closed.
            StoreError: the database did not take it.
        """
        require_rater(rater)
        self._require_open()
        with writing(self._ledger.engine) as connection:
            mine = {r.item for r in self._live(connection) if r.rater == rater}
            waiting = self._open_showings(connection)
            for row in reversed(waiting):
                if row.rater == rater and row.item not in mine and row.item in self._by_digest:
                    return Showing(row.id, self._by_digest[row.item], row.left)
            item = self._choose(connection, rater, mine, waiting)
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
        self._require_open()
        with writing(self._ledger.engine) as connection:
            row = connection.execute(select(showings).where(showings.c.id == showing)).one_or_none()
            if row is None or row.campaign != self._digest:
                raise BadRequest(f"rating: showing {showing!r} is not of this campaign; reload the page")
            before = [r for r in self._live(connection) if (r.item, r.rater) == (row.item, row.rater)]
            if before and (before[0].showing, before[0].choice) == (showing, choice):
                return before[0]
            return self._write(connection, row, choice, before[0] if before else None)

    def shown(self, showing: str, rater: str) -> Showing:
        """A showing of this rater's again, to look at or change the answer.

        Raises:
            BadRequest: there is no such showing, or it is another rater's.
        """
        with self._ledger.engine.connect() as connection:
            row = connection.execute(select(showings).where(showings.c.id == showing)).one_or_none()
        if row is None or (row.campaign, row.rater) != (self._digest, rater):
            raise BadRequest(
                f"rating: showing {showing!r} is not of this campaign and rater; reload the page"
            )
        return Showing(row.id, self._by_digest[row.item], row.left)

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
            rows = self._live(connection)
        votes = _count(r.item for r in rows if r.choice != "skip")
        n_full = sum(votes.get(digest, 0) >= self.campaign.votes_per_item for digest in self._by_digest)
        return Standing(len(self._items), n_full, sum(r.rater == rater for r in rows))

    # ------------------------------------------------------------ inside a transaction

    def _choose(
        self, connection: Connection, rater: str, mine: set[str], waiting: Sequence[Any]
    ) -> Item | None:
        votes = _count(r.item for r in self._live(connection) if r.choice != "skip")
        answered = {(r.item, r.rater) for r in self._live(connection)}
        leases = _count(
            row.item for row in waiting if row.rater != rater and (row.item, row.rater) not in answered
        )
        load = {digest: votes.get(digest, 0) + leases.get(digest, 0) for digest in self._by_digest}
        free = [d for d in self._by_digest if d not in mine and load[d] < self.campaign.votes_per_item]
        return self._by_digest[min(free, key=load.__getitem__)] if free else None

    def _write(self, connection: Connection, row: Any, choice: str, before: Rating | None) -> Rating:
        number = (connection.execute(select(func.max(ratings.c.number))).scalar() or 0) + 1
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

    def _live(self, connection: Connection) -> list[Rating]:
        return _read(connection, ratings.c.campaign == self._digest, ratings.c.live)

    def _open_showings(self, connection: Connection) -> Sequence[Any]:
        since = datetime.now(UTC) - timedelta(seconds=LEASE_S)
        text = since.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        query = select(showings).where(showings.c.campaign == self._digest, showings.c.at > text)
        return connection.execute(query.order_by(showings.c.at)).all()

    def _require_open(self) -> None:
        if is_closed(self._ledger, self._digest):
            raise BadRequest(f"campaign {self.campaign.name}: is closed; it takes no more ratings")


def require_rater(rater: str) -> None:
    """Refuse what cannot be a rater's name.

    Raises:
        BadRequest: empty, longer than 128 characters, or not printable.
    """
    if not rater.strip() or len(rater) > MAX_RATER_CHARACTERS or not rater.isprintable():
        raise BadRequest(
            f"rater {rater[:40]!r}: give a name of 1 to {MAX_RATER_CHARACTERS} printable characters"
        )


def _read(connection: Connection, *where: Any) -> list[Rating]:
    rows = connection.execute(select(ratings).where(*where).order_by(ratings.c.number)).mappings()
    return [Rating(**{k: v for k, v in row.items() if k not in ("digest", "live")}) for row in rows]


def _count(values: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts
