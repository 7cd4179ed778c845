"""The rule of `llmops.ratings.queue.next_item` over arrays: the same item, for campaigns of any size at every vote.

What stays the same from vote to vote (order, groups, votes needed) is laid out once; a vote changes one number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from llmops.ratings.queue import Asked, is_left_to_others
from llmops.records import VotePlan

IntArray = npt.NDArray[np.int64]


class Ranks:
    """The items of one campaign that count, as arrays in its order."""

    def __init__(self, items: Sequence[tuple[str, str, int]]) -> None:
        """Lay out (item, group, votes needed) in the campaign's order; nothing is voted yet."""
        groups: dict[str, int] = {}
        self._items = [item for item, _, _ in items]
        self._place = {item: i for i, item in enumerate(self._items)}
        self._group = np.array(
            [groups.setdefault(group, len(groups)) for _, group, _ in items], dtype=np.int64
        )
        self._needed = np.array([needed for _, _, needed in items], dtype=np.int64)
        self._votes: IntArray = np.zeros(len(items), dtype=np.int64)

    def count(self, votes: Mapping[str, int], items: Iterable[str]) -> None:
        """Take over how many votes each of these items has; items that do not count are passed over."""
        for item in items:
            place = self._place.get(item)
            if place is not None:
                self._votes[place] = votes.get(item, 0)

    def next_item(self, plan: VotePlan | None, asked: Asked) -> str | None:
        """The item (digest) that `queue.next_item` chooses; None when there is none for this rater."""
        load = self._votes.copy()
        for item, n in asked.open_votes.items():
            if item in self._place:
                load[self._place[item]] += n
        lacks: IntArray = np.maximum(self._needed - load, 0)
        free = lacks > 0
        free[[self._place[item] for item in asked.mine if item in self._place]] = False
        if plan is not None and is_left_to_others(int(lacks.sum()), plan, asked.turnout):
            return None
        if plan is not None and plan.looks:
            doubly = free & (self._needed > 1)
            n_double = int(((self._needed > 1) & (lacks == 0)).sum())
            if plan.agreement_items is not None and n_double < plan.agreement_items and doubly.any():
                free = doubly
        places: IntArray = np.flatnonzero(free)
        if not len(places):
            return None
        places = _least(places, lacks if plan is not None and plan.looks else load)
        if plan is not None:
            in_group = np.bincount(self._group, weights=load)
            places = _least(places, in_group[self._group])
        return self._items[int(places[0])]


def _least(places: IntArray, of: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> IntArray:
    """Those of the places whose number is the least, in their order."""
    values = of[places]
    least: IntArray = places[values == values.min()]
    return least
