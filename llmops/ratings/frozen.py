"""The votes a decision counted, frozen by content, and whether they are still what people said.

An artifact of kind `votes` holds votes.jsonl: {rating, item, rater, vote} a line, by number. Raters are r1, r2 ... in
the order of their first vote: who they are stays in the database.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from sqlalchemy import select

from llmops.errors import InvalidEvidence
from llmops.ledger import Ledger
from llmops.ratings.check import verify_ratings
from llmops.ratings.outcomes import live, rating_of, vote_of
from llmops.ratings.withdrawn import withdrawn_ratings
from llmops.records import Campaign, Rating, RatingEvidence
from llmops.schema import canonical_json, short
from llmops.store import Store
from llmops.tables import ratings

VOTES_FILE = "votes.jsonl"


def freeze_votes(store: Store, rows: Iterable[Rating]) -> str:
    """Store the live votes among `rows` (skips are none); returns the digest of the stored files."""
    labels: dict[str, str] = {}
    lines = []
    for row in live(rows):
        vote = vote_of(row)
        if vote is None:
            continue
        rater = labels.setdefault(row.rater, f"r{len(labels) + 1}")
        lines.append(
            canonical_json({"rating": row.digest, "item": row.item, "rater": rater, "vote": vote}) + b"\n"
        )
    return store.put_files("votes", {VOTES_FILE: b"".join(lines)})


def rated_in(store: Store, votes: str) -> list[str]:
    """Digests of the ratings that were frozen as `votes` (a digest).

    Raises:
        InvalidEvidence: the frozen votes are gone or altered.
    """
    lines = (store.verify("votes", votes) / VOTES_FILE).read_bytes().splitlines()
    return [str(json.loads(line)["rating"]) for line in lines]


def n_taken_back(store: Store, ledger: Ledger, evidence: RatingEvidence) -> int:
    """How many of the votes that a decision counted were taken back by their raters since.

    Raises:
        InvalidEvidence: the frozen votes are gone or altered.
    """
    gone = withdrawn_ratings(ledger)
    return sum(rating in gone for rating in rated_in(store, evidence.votes)) if gone else 0


def verify_votes(store: Store, ledger: Ledger, evidence: RatingEvidence) -> None:
    """Check the frozen votes, the campaign, and every rating of it; a rating given later does not matter.

    Raises:
        InvalidEvidence: names what is missing, was altered, or no longer says what was counted.
    """
    store.get_record(Campaign, evidence.campaign)
    verify_ratings(store, ledger, evidence.campaign)
    folder = store.verify("votes", evidence.votes)
    with ledger.engine.connect() as connection:
        rows = connection.execute(select(ratings).where(ratings.c.campaign == evidence.campaign)).mappings()
        known = {row["digest"]: rating_of({**row}) for row in rows}
    for line in (folder / VOTES_FILE).read_bytes().splitlines():
        counted = json.loads(line)
        rating = known.get(counted["rating"])
        if rating is None or (rating.item, vote_of(rating)) != (counted["item"], counted["vote"]):
            raise InvalidEvidence(
                f"votes {short(evidence.votes)}: counted rating {short(counted['rating'])} is not among the "
                "campaign's ratings; restore the database"
            )
