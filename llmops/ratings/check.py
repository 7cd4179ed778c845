"""Whether the database's ratings are those the ledger knows: row by row, side by side, text by text, item by item."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, select

from llmops.errors import InvalidEvidence
from llmops.ledger import Ledger
from llmops.ratings.added import added_items, deleted_items
from llmops.ratings.campaigns import is_added_to, load_items
from llmops.ratings.outcomes import rating_of
from llmops.ratings.rows import text_digest
from llmops.ratings.withdrawn import texts_deleted_in
from llmops.records import Campaign, Pins, Rating
from llmops.schema import JsonDict, short
from llmops.store import Store
from llmops.tables import events, rating_texts, ratings, showings


def verify_ratings(store: Store, ledger: Ledger, campaign: str | None = None) -> int:
    """Compare every rating, its showing and its campaign's items with the ledger; returns how many ratings there are.

    People may go on rating meanwhile. `campaign` (a digest) checks that campaign's alone: damage to another's must not
    stop what rests on this one.

    Raises:
        InvalidEvidence: names the first rating that was edited, whose side was swapped, that is missing, or that the
            ledger does not know; or the campaign whose items were altered.
    """
    with _one_moment(ledger.engine) as connection:
        given = _given(connection, campaign)
        found = _rows(connection, campaign)
        query = select(showings.c.id, showings.c.campaign, showings.c.item, showings.c.rater, showings.c.left)
        sides = {row.id: tuple(row[1:]) for row in connection.execute(query)}
        texts = _text_digests(connection)
        deleted = texts_deleted_in(connection)
        items = _Items(store, ledger, connection, campaign)
    _require_complete(given, found)
    superseded = {row.rating.supersedes for row in found.values()}
    for number, row in found.items():
        _require_same(row, given[number])
    for number, row in found.items():
        rating = row.rating
        if sides.get(rating.showing) != (rating.campaign, rating.item, rating.rater, rating.left):
            raise InvalidEvidence(
                f"ratings: the showing of #{number} was changed (sides, item or rater); restore the database"
            )
        if row.live == (rating.digest in superseded):
            raise InvalidEvidence(f"ratings: whether #{number} counts was changed; restore the database")
        _require_texts(rating, texts, rating.digest in deleted)
        if rating.pins is not None and items.pins(rating) not in (None, rating.pins):
            raise InvalidEvidence(
                f"ratings: #{number} was given about other systems, answers or rubric; restore store and database"
            )
    return len(found)


class _Items:
    """The items of the campaigns that were opened, verified, and what their ratings must be pinned to."""

    def __init__(self, store: Store, ledger: Ledger, connection: Connection, campaign: str | None) -> None:
        opened = {str(e.body["campaign"]) for e in ledger.events("campaign.opened")}
        self._pins: dict[tuple[str, str], str] = {}
        for digest in sorted(opened & ({campaign} if campaign else opened)):
            record = store.get_record(Campaign, digest)
            items = load_items(store, record)
            if is_added_to(record):
                items = added_items(connection, digest)
                _require_added(connection, record, {item.digest for item in items})
            self._pins |= {(digest, item.digest): Pins.of(record, item).digest for item in items}

    def pins(self, rating: Rating) -> str | None:
        """None where the item's texts were deleted."""
        return self._pins.get((rating.campaign, rating.item))


def _require_added(connection: Connection, campaign: Campaign, there: set[str]) -> None:
    """Refuse items that the ledger does not know, or whose texts are gone though nobody had them deleted."""
    digest = campaign.digest()
    bodies = connection.execute(select(events.c.body).where(events.c.kind == "item.added")).scalars()
    told = {body["item"] for body in map(json.loads, bodies) if body["campaign"] == digest}
    lost = told - there - deleted_items(connection, digest)
    strange = there - told
    if lost or strange:
        what = "is gone" if lost else "is not in the ledger"
        raise InvalidEvidence(
            f"campaign {campaign.name}: item {short(min(lost or strange))} {what}; restore the database"
        )


def _text_digests(connection: Connection) -> dict[tuple[str, str], str]:
    rows = connection.execute(select(rating_texts))
    return {(row.rating, row.field): text_digest(row.salt, row.text) for row in rows}


def _require_texts(rating: Rating, texts: dict[tuple[str, str], str], deleted: bool) -> None:
    for name, said in (("note", rating.note), ("edit", rating.edit)):
        found = texts.get((rating.digest, name))
        if found != said and not (found is None and deleted):
            became = "is gone" if found is None else "was changed"
            raise InvalidEvidence(f"ratings: the {name} of #{rating.number} {became}; restore the database")


@dataclass(frozen=True)
class _Row:
    """A rating as its row spells it, and the digest and standing that the row claims."""

    rating: Rating
    digest: str
    live: bool


@contextmanager
def _one_moment(engine: Engine) -> Iterator[Connection]:
    """A connection that sees ratings and events as of one moment, whoever writes in between."""
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            # SQLite's transactions read one state anyway; here each statement would see a newer one.
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield connection


def _given(connection: Connection, campaign: str | None) -> dict[int, JsonDict]:
    """What the ledger says of each rating, with its event's number, by the rating's number."""
    query = select(events.c.seq, events.c.body).where(events.c.kind == "rating.given")
    given: dict[int, JsonDict] = {}
    for seq, text in connection.execute(query):
        body = {**json.loads(text), "seq": seq}
        number = int(body["number"])
        if campaign not in (None, body["campaign"]):
            continue
        if number in given:
            raise InvalidEvidence(f"ratings: #{number} was given twice (event {seq}); restore the database")
        given[number] = body
    return given


def _rows(connection: Connection, campaign: str | None) -> dict[int, _Row]:
    query = select(ratings).order_by(ratings.c.number)
    if campaign is not None:
        query = query.where(ratings.c.campaign == campaign)
    return {
        int(row["number"]): _Row(rating_of({**row}), str(row["digest"]), bool(row["live"]))
        for row in connection.execute(query).mappings()
    }


def _require_complete(given: dict[int, JsonDict], found: dict[int, _Row]) -> None:
    for number in sorted(given.keys() ^ found.keys()):
        if number in given:
            raise InvalidEvidence(f"ratings: #{number} is missing from the database; restore it")
        raise InvalidEvidence(
            f"ratings: #{number} is not in the ledger; it was not given on the page, remove it"
        )


def _require_same(row: _Row, said: JsonDict) -> None:
    rating = row.rating
    if not (rating.digest == row.digest == said["rating"]) or (rating.campaign, rating.item) != (
        said["campaign"], said["item"]
    ):  # fmt: skip
        raise InvalidEvidence(
            f"ratings: #{rating.number} was changed after it was given (event {said['seq']}, "
            f"{short(str(said['rating']))}); restore the database"
        )
