"""Raters who withdrew: which ratings no longer count, by the ledger, and who may no longer rate, by the database."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, update

from llmops.db import writing
from llmops.errors import BadRequest
from llmops.ledger import Ledger, append_event
from llmops.ratings.added import all_deleted_items, forget_in
from llmops.records import Rating
from llmops.settings import now
from llmops.tables import events, rating_texts, ratings, withdrawn_raters


@dataclass(frozen=True)
class Withdrawal:
    """What a withdrawal takes back: digests of the ratings, and how many texts were deleted with them."""

    rater: str
    at: str
    ratings: tuple[str, ...]
    n_texts_deleted: int


def withdraw(ledger: Ledger, rater: str, reason: str | None = None, delete_texts: bool = False) -> Withdrawal:
    """Take back all ratings of a rater, who gives no more of them from now on. The rows stay: they are evidence.

    Again for the same rater it takes back what is not yet, and deletes texts when that is asked now.

    Raises:
        BadRequest: nobody of that name has rated.
        StoreError: the database did not take it.
    """
    with writing(ledger.engine) as connection:
        own = list(connection.execute(select(ratings.c.digest).where(ratings.c.rater == rater)).scalars())
        if not own:
            raise BadRequest(
                f"rater {rater[:40]!r}: has rated nothing here; `llmops feedback ratings CAMPAIGN` lists who did"
            )
        known = withdrawn_in(connection)
        new = [digest for digest in own if digest not in known]
        before = connection.execute(
            select(withdrawn_raters).where(withdrawn_raters.c.rater == rater)
        ).one_or_none()
        there = set(connection.execute(select(rating_texts.c.rating)).scalars()) & set(own)
        gone = sorted(there) if delete_texts else []
        at = now()
        if new or gone or before is None:
            # Digests alone: who it was lies in the database, with the reason.
            event = append_event(connection, "rater.withdrawn", {"ratings": new, "texts_deleted": gone})
            for digest in gone:
                connection.execute(delete(rating_texts).where(rating_texts.c.rating == digest))
            if delete_texts:
                forget_in(connection, rater)  # prompts the rater typed
            row = {"at": at, "reason": reason, "event": event.seq, "texts_deleted": delete_texts}
            if before is None:
                connection.execute(withdrawn_raters.insert().values(rater=rater, **row))
            elif gone:
                connection.execute(
                    update(withdrawn_raters)
                    .where(withdrawn_raters.c.rater == rater)
                    .values(texts_deleted=True)
                )
        return Withdrawal(rater, before.at if before else at, tuple(own), len(gone))


def withdrawn_ratings(ledger: Ledger) -> frozenset[str]:
    """Digests of all ratings that were taken back."""
    with ledger.engine.connect() as connection:
        return withdrawn_in(connection)


def lost_ratings(ledger: Ledger) -> dict[str, str]:
    """Digests of the ratings on which nothing may rest any more, each with the reason.

    They were taken back by their rater, or the texts they are about were deleted on demand.
    """
    with ledger.engine.connect() as connection:
        found = dict.fromkeys(withdrawn_in(connection), "its rater took it back")
        deleted = all_deleted_items(connection)
        if deleted:
            given = connection.execute(select(events.c.body).where(events.c.kind == "rating.given")).scalars()
            for body in map(json.loads, given):
                if (body["campaign"], body["item"]) in deleted:
                    found.setdefault(str(body["rating"]), "the texts it is about were deleted")
    return found


def withdrawn_in(connection: Connection) -> frozenset[str]:
    """`withdrawn_ratings` as this transaction sees it."""
    return frozenset(digest for body in _bodies(connection) for digest in body["ratings"])


def texts_deleted_in(connection: Connection) -> frozenset[str]:
    """Digests of the ratings whose texts were deleted on demand."""
    return frozenset(digest for body in _bodies(connection) for digest in body["texts_deleted"])


def is_withdrawn(connection: Connection, rater: str) -> bool:
    """Whether a rater has withdrawn."""
    query = select(withdrawn_raters.c.rater).where(withdrawn_raters.c.rater == rater)
    return connection.execute(query).first() is not None


def withdrawn_of(connection: Connection) -> frozenset[str]:
    """All raters who have withdrawn."""
    return frozenset(connection.execute(select(withdrawn_raters.c.rater)).scalars())


def without(rows: Iterable[Rating], taken_back: frozenset[str]) -> list[Rating]:
    """The ratings that were not taken back."""
    return [row for row in rows if row.digest not in taken_back]


def _bodies(connection: Connection) -> list[dict[str, list[str]]]:
    query = select(events.c.body).where(events.c.kind == "rater.withdrawn")
    return [json.loads(body) for body in connection.execute(query).scalars()]
