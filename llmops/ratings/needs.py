"""What a gate still needs of its campaign: votes to its next look, and items for a fair chance to pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmops.ratings.book import RatingBook
from llmops.ratings.queue import next_look, votes_to_look
from llmops.records import VotePlan

TIES_FRAC = 0.3
"""Share of ties that is planned with: the campaign's own would tell how the votes go."""
WIN_RATE = 60.0
"""True win rate, in %, that a gate which asks for more than half is planned with."""
POWERS = (0.8, 0.9)


@dataclass(frozen=True)
class GateNeeds:
    """What stands between the votes so far and a decision.

    `n_votes_missing` is the fewest votes after which the gate can look (None: all looks are passed); `look_level` the
    confidence of its bound at that look. `items_for_power` says how many rated items a PASS needs with that
    probability, by the same plan as `llmops gate plan`.
    """

    n_full: int
    looks: tuple[int, ...]
    next_look: int | None
    n_votes_missing: int | None
    look_level: float | None
    n_raters_missing: int
    n_agreement_items_missing: int
    items_for_power: dict[str, int | None]
    assumed: str


def gate_needs(book: RatingBook) -> GateNeeds | None:
    """What the gate of a campaign still needs; None where no gate waits for it."""
    plan = book.campaign.plan
    if plan is None:
        return None
    needs, turnout = book.queue()
    n_full = sum(not need.lacks for need in needs)
    doubly = sum(need.n_needed > 1 and not need.lacks for need in needs)
    look = next_look(n_full, plan) if plan.looks else len(needs)
    return GateNeeds(
        n_full=n_full,
        looks=plan.looks,
        next_look=look,
        n_votes_missing=votes_to_look(needs, plan),
        look_level=_level_at(plan, look),
        n_raters_missing=max(0, plan.min_raters - turnout.n_raters),
        n_agreement_items_missing=max(0, (plan.agreement_items or 0) - doubly),
        items_for_power=_items_for_power(plan),
        assumed=f"true win rate {_assumed(plan):g} %, {100 * TIES_FRAC:g} % ties, one vote an item",
    )


def _level_at(plan: VotePlan, look: int | None) -> float | None:
    if look is None:
        return None
    if not plan.looks:
        return plan.level
    from llmops import stats

    shares = [items / plan.looks[-1] for items in plan.looks]
    return stats.look_level(shares, plan.looks.index(look) + 1, 1 - plan.level)


def _assumed(plan: VotePlan) -> float:
    return WIN_RATE if plan.kind == "superior" else 50.0


def _items_for_power(plan: VotePlan) -> dict[str, int | None]:
    from llmops import stats

    test = stats.vote_plan(TIES_FRAC, plan.threshold / 100, _assumed(plan) / 100, plan.level)
    if plan.looks:
        test = replace(test, looks=tuple(items / plan.looks[-1] for items in plan.looks))
    return {f"{power:g}": stats.n_for_power(test, power) for power in POWERS}
