"""How much raters agree beyond chance where several rated one item. Pure functions over votes and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Scale = Literal["nominal", "ordinal", "interval"]
"""What two different values mean: just different, so many ranks apart, or so far apart."""


@dataclass(frozen=True)
class Agreed:
    """Krippendorff's alpha, over how many items; None where everybody always said the same one thing."""

    alpha: float | None
    n_items: int


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa of two raters over the items that both rated; None where each always said the same one thing."""

    raters: tuple[str, str]
    kappa: float | None
    n_items: int


def krippendorff_alpha(units: Sequence[Sequence[Any]], scale: Scale = "nominal") -> Agreed:
    """Krippendorff's alpha: 1 - observed over expected disagreement, of the items with two votes or more.

    Computed from how often each value was given to each item, so that who gave it does not matter.
    Source: Krippendorff, Content Analysis (2004), ch. 11; equal to the package `krippendorff`.

    Args:
        units: the votes of each item, in any order; items with fewer than two are left out.
        scale: what distance between two values is; numbers are needed but for `nominal`.

    >>> krippendorff_alpha([["a", "a"], ["b", "b"], ["a"]])
    Agreed(alpha=1.0, n_items=2)
    """
    doubly = [Counter(votes) for votes in units if len(votes) > 1]
    totals: Counter[Any] = Counter()
    for counts in doubly:
        totals.update(counts)
    n = sum(totals.values())
    if n < 2:
        return Agreed(None, len(doubly))
    apart = _distances(totals, scale)
    observed = sum(_disagreement(counts, apart) / (sum(counts.values()) - 1) for counts in doubly)
    expected = _disagreement(totals, apart) / (n - 1)
    if expected == 0:
        return Agreed(None, len(doubly))
    return Agreed(1 - observed / expected, len(doubly))


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float | None:
    """Cohen's kappa of two raters' values of the same items, in the same order; None where chance explains all.

    Source: Cohen, A coefficient of agreement for nominal scales, Educ. Psychol. Meas. 20 (1960) 37-46.

    >>> cohen_kappa(["a", "a", "b", "b"], ["a", "b", "b", "b"])
    0.5
    """
    if len(a) != len(b) or not a:
        return None
    n = len(a)
    same = sum(x == y for x, y in zip(a, b, strict=True)) / n
    mine, theirs = Counter(a), Counter(b)
    chance = sum(mine[value] * theirs[value] for value in mine) / n**2
    return None if chance == 1 else (same - chance) / (1 - chance)


def pairwise_kappas(said: dict[str, dict[str, Any]]) -> list[Kappa]:
    """Cohen's kappa of every two raters who rated an item in common; `said` is rater -> item -> value."""
    raters = sorted(said)
    found = []
    for i, a in enumerate(raters):
        for b in raters[i + 1 :]:
            shared = [item for item in said[a] if item in said[b]]
            if shared:
                kappa = cohen_kappa([said[a][item] for item in shared], [said[b][item] for item in shared])
                found.append(Kappa((a, b), kappa, len(shared)))
    return found


def _disagreement(counts: Counter[Any], apart: dict[tuple[Any, Any], float]) -> float:
    """The sum of the distances of all ordered pairs of votes."""
    return sum(counts[a] * counts[b] * far for (a, b), far in apart.items() if a in counts and b in counts)


def _distances(totals: Counter[Any], scale: Scale) -> dict[tuple[Any, Any], float]:
    """The squared distance of every two different values."""
    values = list(totals) if scale == "nominal" else sorted(totals)
    found: dict[tuple[Any, Any], float] = {}
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            if i == j:
                continue
            if scale == "nominal":
                found[a, b] = 1.0
            elif scale == "interval":
                found[a, b] = float((a - b) ** 2)
            else:
                low, high = min(i, j), max(i, j)
                between = sum(totals[v] for v in values[low : high + 1])
                found[a, b] = float((between - (totals[a] + totals[b]) / 2) ** 2)
    return found
