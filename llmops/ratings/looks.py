"""Which ratings count when votes are looked at before all are in: those of exactly so many items, as they were then.

An item joins at the first look after it has all its votes, with the votes it had; whatever is changed later, when a
result may have been seen, changes nothing. Pure functions over rating rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmops.ratings.outcomes import vote_of
from llmops.records import Rating


@dataclass(frozen=True)
class Look:
    """The newest look that has been reached: its place among those declared (from 0), and the ratings it counts."""

    place: int
    rows: tuple[Rating, ...]


def reached(
    ratings: Iterable[Rating], looks: Sequence[int], votes_per_item: int | Mapping[str, int]
) -> Look | None:
    """The newest of the declared looks that the ratings reach; None before the first.

    Args:
        ratings: all of a campaign, superseded ones too.
        looks: rising numbers of items that have all their votes.
        votes_per_item: how many these are, of all items or by the item's digest.
    """
    needed = votes_per_item
    standing: dict[str, dict[str, Rating]] = defaultdict(dict)
    full: dict[str, None] = {}
    frozen: dict[str, tuple[Rating, ...]] = {}
    place = -1
    for row in sorted(ratings, key=lambda r: r.number):
        standing[row.item][row.rater] = row
        votes = [r for r in standing[row.item].values() if vote_of(r) is not None]
        if len(votes) >= (needed if isinstance(needed, int) else needed[row.item]):
            full.setdefault(row.item)
        else:
            full.pop(row.item, None)
        due = next(
            (k for k in range(place + 1, len(looks)) if len(full.keys() | frozen.keys()) >= looks[k]), None
        )
        if due is not None:
            place = due
            for item in full:
                if item not in frozen:
                    frozen[item] = tuple(r for r in standing[item].values() if vote_of(r) is not None)
    if place < 0:
        return None
    return Look(place, tuple(sorted((r for rows in frozen.values() for r in rows), key=lambda r: r.number)))
