"""What several people's ratings of one item come to. Pure functions over rating rows."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from llmops.records import Rating
from llmops.schema import canonical_json

Vote = Literal["first", "second", "tie", "both_bad"]
Outcome = Literal["first", "second", "tie", "both_bad", "split"]

RULE = (
    "a rater's last rating of an item counts, skips are no votes; an item's outcome is what most of its votes say, and "
    "split when two say it equally often; ties, both bad and split items never become pairs"
)
"""The rule by which conflicting and repeated votes are resolved; snapshots carry it."""


OF_THE_ROW = ("digest", "live", "key")
"""Columns of the table `ratings` that are no part of the rating: the row's own claims, and the click's key."""


def rating_of(row: Mapping[str, Any]) -> Rating:
    """The rating that a row of the table `ratings` spells."""
    said = {name: value for name, value in row.items() if name not in OF_THE_ROW}
    said["tags"] = tuple(json.loads(said.get("tags") or "[]"))
    said["scores"] = json.loads(said.get("scores") or "{}")
    return Rating(**said)


def row_of(rating: Rating) -> dict[str, Any]:
    """The columns of a rating's row; its own claims are added where it is written."""
    spelt = {name: canonical_json(getattr(rating, name)).decode() for name in ("tags", "scores")}
    return {
        **rating.__dict__,
        **{name: text if getattr(rating, name) else None for name, text in spelt.items()},
    }


def live(ratings: Iterable[Rating]) -> list[Rating]:
    """The ratings that no later one supersedes, by number."""
    rows = sorted(ratings, key=lambda r: r.number)
    superseded = {row.supersedes for row in rows}
    return [row for row in rows if row.digest not in superseded]


def vote_of(rating: Rating) -> Vote | None:
    """What a rating says of the item's two answers, wherever they stood on the page; None where it compares nothing."""
    if rating.choice == "tie":
        return "tie"
    if rating.choice == "both_bad":
        return "both_bad"
    if rating.preferred is None:
        return None
    return "first" if rating.preferred == 0 else "second"


def is_answer(rating: Rating) -> bool:
    """Whether a rating says something of its item: neither a skip nor an answer that was taken back."""
    return rating.choice not in ("skip", "undone")


def outcome(votes: Sequence[Vote]) -> Outcome:
    """What most of an item's votes say; `split` when no option has more than every other.

    >>> outcome(["first", "first", "tie"]), outcome(["first", "second"])
    ('first', 'split')
    """
    ranked = Counter(votes).most_common(2)
    if len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
        return "split"
    return ranked[0][0]


def votes_by_item(ratings: Iterable[Rating]) -> dict[str, list[Vote]]:
    """The live votes of every item that has any, by item digest."""
    found: dict[str, list[Vote]] = defaultdict(list)
    for rating in live(ratings):
        vote = vote_of(rating)
        if vote is not None:
            found[rating.item].append(vote)
    return dict(found)
