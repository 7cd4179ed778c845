"""Whether the database's ratings are those the ledger knows: row by row, side by side, item by item."""

from __future__ import annotations

from sqlalchemy import Connection, select

from llmops.db import ratings, showings
from llmops.errors import InvalidEvidence
from llmops.ledger import Event, Ledger
from llmops.records import Campaign, Rating
from llmops.schema import short
from llmops.store import Store


def verify_ratings(store: Store, ledger: Ledger) -> int:
    """Compare every rating, its showing and its campaign's items with the ledger; returns how many ratings there are.

    Raises:
        InvalidEvidence: names the first rating that was edited, whose side was swapped, that is missing, or that the
            ledger does not know; or the campaign whose items were altered.
    """
    given = {int(e.body["number"]): e for e in ledger.events("rating.given")}
    with ledger.engine.connect() as connection:
        found = _rows(connection)
        sides = {row.id: row for row in connection.execute(select(showings))}
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
        superseded = any(other.supersedes == rating.digest for other, _, _ in found.values())
        if alive == superseded:
            raise InvalidEvidence(f"ratings: whether #{number} counts was changed; restore the database")
    for campaign in {str(e.body["campaign"]) for e in ledger.events("campaign.opened")}:
        store.verify("items", store.get_record(Campaign, campaign).items)
    return len(found)


def _rows(connection: Connection) -> dict[int, tuple[Rating, str, bool]]:
    found = {}
    for row in connection.execute(select(ratings).order_by(ratings.c.number)).mappings():
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
