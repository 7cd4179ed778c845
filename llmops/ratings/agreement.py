"""How much raters agree beyond chance where several rated one item. Pure functions over votes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreed:
    """Krippendorff's alpha, over how many items; None where everybody always said the same one thing."""

    alpha: float | None
    n_items: int


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> Agreed:
    """Nominal alpha: 1 - observed over expected disagreement, of the items with two votes or more.

    Source: Krippendorff, Content Analysis (2004), ch. 11; equal to the package `krippendorff`.

    Args:
        units: the votes of each item, in any order; items with fewer than two are left out.

    >>> krippendorff_alpha([["a", "a"], ["b", "b"], ["a"]])
    Agreed(alpha=1.0, n_items=2)
    """
    doubly = [Counter(votes) for votes in units if len(votes) > 1]
    totals: Counter[str] = Counter()
    observed = 0.0
    for counts in doubly:
        m = sum(counts.values())
        totals.update(counts)
        observed += sum(n * (m - n) for n in counts.values()) / (m - 1)
    n = sum(totals.values())
    expected = sum(k * (n - k) for k in totals.values()) / (n - 1) if n > 1 else 0.0
    if expected == 0:
        return Agreed(None, len(doubly))
    return Agreed(1 - observed / expected, len(doubly))
