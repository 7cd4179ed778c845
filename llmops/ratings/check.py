"""Whether the database's ratings are those the ledger knows: row by row, side by side, item by item."""

from __future__ import annotations

from sqlalchemy import Connection, select

from llmops.db import ratings, showings
from llmops.errors import InvalidEvidence
from llmops.ledger import Event, Ledger
from llmops.records import Campaign, Rating
from llmops.schema import short
from llmops.store import Store


def verify_ratings(store: Store, ledger: Ledger, campaign: str | None = None) -> int:
    """Compare every rating, its showing and its campaign's items with the ledger; returns how many ratings there are.

    `campaign` (a digest) checks that campaign's alone: damage to another's must not stop what rests on this one.

    Raises:
        InvalidEvidence: names the first rating that was edited, whose side was swapped, that is missing, or that the
            ledger does not know; or the campaign whose items were altered.
    """
    events = ledger.events("rating.given")
    given = {int(e.body["number"]): e for e in events if campaign in (None, e.body["campaign"])}
    with ledger.engine.connect() as connection:
        found = _rows(connection, campaign)
        sides = {row.id: row for row in connection.execute(select(showings))}
    superseded = {rating.supersedes for rating, _, _ in found.values()}
    for number in sorted(given.keys() | found.keys()):
        if number not in found:
            raise InvalidEvidence(f"ratings: #{number} is missing from the database; restore it")
        rating, said, alive = found[number]
        if number not in given:
            raise InvalidEvidence(
                f"ratings: #{number} is not in the ledger; it was not given on the page, remove it"
            )
        _require_same(rating, said, given[number])
        shown = sides.get(rating.showing)
        if shown is None or (shown.campaign, shown.item, shown.rater, shown.left) != (
            rating.campaign, rating.item, rating.rater, rating.left
        ):  # fmt: skip
            raise InvalidEvidence(
                f"ratings: the showing of #{number} was changed (sides, item or rater); restore the database"
            )
        if alive == (rating.digest in superseded):
            raise InvalidEvidence(f"ratings: whether #{number} counts was changed; restore the database")
    opened = {str(e.body["campaign"]) for e in ledger.events("campaign.opened")}
    for digest in opened & ({campaign} if campaign else opened):
        store.verify("items", store.get_record(Campaign, digest).items)
    return len(found)


def _rows(connection: Connection, campaign: str | None) -> dict[int, tuple[Rating, str, bool]]:
    found = {}
    query = select(ratings).order_by(ratings.c.number)
    if campaign is not None:
        query = query.where(ratings.c.campaign == campaign)
    for row in connection.execute(query).mappings():
        fields = {k: v for k, v in row.items() if k not in ("digest", "live")}
        found[int(row["number"])] = (Rating(**fields), str(row["digest"]), bool(row["live"]))
    return found


def _require_same(rating: Rating, said: str, event: Event) -> None:
    body = event.body
    if rating.digest != said or said != body["rating"] or (rating.campaign, rating.item) != (
        body["campaign"], body["item"]
    ):  # fmt: skip
        raise InvalidEvidence(
            f"ratings: #{rating.number} was changed after it was given (event {event.seq}, "
            f"{short(str(body['rating']))}); restore the database"
        )
