"""Which item a rater gets next: the rules, as pure functions. `llmops.ratings.book` reads and writes around them.

`next_item` is the rule at its plainest; the page asks `llmops.ratings.ranks`, which finds the same item faster.

A vote is worth what it does for the decision that the campaign was opened for.

* The gate has declared looks. It then counts only items that have all their votes, when there are as many as its next
  look asks for; before that it says INCONCLUSIVE whatever people think. So the next vote goes to an item from which
  the look is reached with the fewest votes: one that lacks the fewest. Where the gate also asks for agreement, which
  only items with two votes or more show, those come first until there are enough of them; else the look would end
  INVALID.
* The gate has no looks: it counts when all items have their votes, or when the campaign is closed before. Votes on one
  item are alike, so at any moment the interval is narrowest when the votes lie on as many items as possible: the item
  with the fewest votes comes first. The same holds for training, where an item with one vote is a pair already.

Ties go to the group of prompts with the fewest votes (prompts of one group are alike too), then to the campaign's
order. Open showings count as votes: they are on their way. As long as fewer people have voted than the gate asks for,
one who has is given no item that the others need to be heard.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmops.records import Item, VotePlan

REPEAT_AFTER = 5
"""Answers that lie between an item and its repeat at least, so that nobody just remembers."""


@dataclass(frozen=True)
class Need:
    """An item that counts, as the queue sees it: its votes in all, those given or on their way, and whether it is free.

    `is_mine` says that the rater who asks has answered it already.
    """

    item: str
    group: str
    n_needed: int
    load: int
    is_mine: bool = False

    @property
    def lacks(self) -> int:
        """Votes that are missing."""
        return max(0, self.n_needed - self.load)


@dataclass(frozen=True)
class Turnout:
    """Who has voted: how many people, and whether the rater who asks is one of them."""

    n_raters: int
    has_voted: bool


@dataclass(frozen=True)
class Asked:
    """What differs from one rater who asks to the next.

    `open_votes` are votes on their way by item, `mine` the items this rater has answered.
    """

    open_votes: Mapping[str, int]
    mine: Iterable[str]
    turnout: Turnout


def next_item(needs: Sequence[Need], plan: VotePlan | None, turnout: Turnout) -> str | None:
    """The item (digest) whose vote brings a decision nearest; None when there is none for this rater."""
    free = [need for need in needs if need.lacks and not need.is_mine]
    n_missing = sum(need.lacks for need in needs)
    if not free or (plan is not None and is_left_to_others(n_missing, plan, turnout)):
        return None
    place = {need.item: i for i, need in enumerate(needs)}
    if plan is None:
        return min(free, key=lambda n: (n.load, place[n.item])).item
    in_group = Counter[str]()
    for need in needs:
        in_group[need.group] += need.load
    if not plan.looks:
        return min(free, key=lambda n: (n.load, in_group[n.group], place[n.item])).item
    doubly = [n for n in free if n.n_needed > 1]
    if doubly and _n_agreement_lacks(needs, plan):
        free = doubly
    return min(free, key=lambda n: (n.lacks, in_group[n.group], place[n.item])).item


def votes_to_look(needs: Sequence[Need], plan: VotePlan) -> int | None:
    """The fewest votes after which the gate can decide at its next look; None when all looks are passed.

    Without looks these are all votes that are missing.
    """
    if not plan.looks:
        return sum(need.lacks for need in needs)
    target = next_look(sum(not need.lacks for need in needs), plan)
    if target is None:
        return None
    first = sorted((n for n in needs if n.lacks and n.n_needed > 1), key=lambda n: n.lacks)
    first = first[: _n_agreement_lacks(needs, plan)]
    taken = {need.item for need in first}
    rest = sorted(n.lacks for n in needs if n.lacks and n.item not in taken)
    n_full = sum(not need.lacks for need in needs)
    rest = rest[: max(0, target - n_full - len(first))]
    return sum(need.lacks for need in first) + sum(rest)


def next_look(n_full: int, plan: VotePlan) -> int | None:
    """Items with all their votes at the first look that is still to come and may decide; None after the last."""
    return next((look for look in plan.looks if look > n_full and look >= plan.min_items), None)


def is_left_to_others(n_votes_missing: int, plan: VotePlan, turnout: Turnout) -> bool:
    """Whether the last votes are kept for people the gate still has to hear, so that this rater gets none of them."""
    n_raters_missing = plan.min_raters - turnout.n_raters
    return turnout.has_voted and n_raters_missing > 0 and n_votes_missing <= n_raters_missing


def is_gold_due(every: int, seed: str, n_answered: int) -> bool:
    """Whether a rater's next item is a gold one: one in each `every`, at a place that `seed` draws anew each time."""
    if not every:
        return False
    block, place = divmod(n_answered, every)
    drawn = hashlib.sha256(f"{seed}\0{block}".encode()).digest()
    return place == int.from_bytes(drawn[:4], "big") % every


def repeat_for(repeats: Mapping[str, Item], answered: Sequence[str]) -> Item | None:
    """The repeat (by digest) a rater may be asked now, by the items they answered, oldest first; None without any.

    Two repeats never follow each other.
    """
    if not answered or answered[-1] in repeats:
        return None
    place = {digest: i for i, digest in enumerate(answered)}
    for digest, item in repeats.items():
        asked = place.get(item.repeat_of or "")
        if asked is not None and digest not in place and len(answered) - asked > REPEAT_AFTER:
            return item
    return None


def _n_agreement_lacks(needs: Sequence[Need], plan: VotePlan) -> int:
    """Items with two votes or more that must become full before agreement can be computed."""
    if plan.agreement_items is None:
        return 0
    return max(0, plan.agreement_items - sum(n.n_needed > 1 and not n.lacks for n in needs))
