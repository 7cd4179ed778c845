"""Whether the database's ratings are those the ledger knows: row by row, side by side, item by item."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, select

from llmops.db import events, ratings, showings
from llmops.errors import InvalidEvidence
from llmops.ledger import Ledger
from llmops.ratings.outcomes import rating_of
from llmops.records import Campaign, Rating
from llmops.schema import JsonDict, short
from llmops.store import Store


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
    opened = {str(e.body["campaign"]) for e in ledger.events("campaign.opened")}
    for digest in sorted(opened & ({campaign} if campaign else opened)):
        store.verify("items", store.get_record(Campaign, digest).items)
    return len(found)


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
