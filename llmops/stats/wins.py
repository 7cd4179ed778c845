"""Win rates from votes: how often people prefer the candidate, ties counting half, by item and by rater.

Votes on one item are alike, and so are votes of one rater: neither are independent evidence. The variance of the mean
vote counts both kinds of cluster (Cameron, Gelbach and Miller): by item, plus by rater, less what both share, and at
least the larger of the two. Its design effect makes an effective number of votes, on which wins and losses are
compared as paired binary outcomes (`llmops.stats.binary`).

Source: Cameron, Gelbach and Miller, Robust inference with multiway clustering, J. Bus. Econ. Stat. 29 (2011) 238-249.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from llmops.errors import InvalidEvidence
from llmops.stats.binary import (
    Changes,
    ClusteredError,
    changes_interval,
    changes_sd,
    clustered_error,
    design_effect,
    effective_share,
)
from llmops.stats.guard import MIN_PAIRS, MIN_RATERS, MIN_UNITS, units_doubt
from llmops.stats.interval import (
    FloatArray,
    IntArray,
    Interval,
    Labels,
    are_units,
    checked_cases,
    cluster_codes,
)


def win_rate(
    votes: npt.ArrayLike, level: float, items: Labels | None = None, raters: Labels | None = None
) -> Interval:
    """The interval of the candidate's win rate, from 0 to 1, even being 0.5.

    Args:
        votes: [V] 1 where the candidate won, 0 where it lost, 0.5 for a tie.
        level: confidence of each bound, in (0.5, 1).
        items: [V] which item was voted on; None where each vote is on an item of its own.
        raters: [V] who voted; None where who votes is not part of the question (or each vote is another person's).

    Raises:
        InvalidEvidence: fewer than 2 votes, labels that are not one a vote, or a vote that is none of the three.

    >>> found = win_rate([1] * 30 + [0.5] * 20 + [0] * 10, level=0.95)
    >>> round(found.estimate, 3), round(found.low, 3)
    (0.667, 0.578)
    """
    x = _checked_votes(votes)
    by_item, by_rater = cluster_codes(items, len(x)), cluster_codes(raters, len(x))
    found = changes_interval(_changes(x), level, _error(x, by_item, by_rater)).scaled(0.5).shifted(0.5)
    n_items = _n_items(x, by_item)
    return replace(found, n_clusters=n_items, doubt=_doubt(x, by_item, by_rater))


@dataclass(frozen=True)
class Worth:
    """How many votes that stand alone some votes are worth; on how many items they are; what is in doubt about them."""

    n: float
    n_items: int
    doubt: str | None


def worth(
    votes: npt.ArrayLike, level: float, items: Labels | None = None, raters: Labels | None = None
) -> Worth:
    """What `win_rate` takes votes for: arguments and errors as there.

    >>> worth([1, 0, 0.5, 1] * 10, level=0.95).n
    40.0
    """
    x = _checked_votes(votes)
    by_item, by_rater = cluster_codes(items, len(x)), cluster_codes(raters, len(x))
    error, n = _error(x, by_item, by_rater), float(len(x))
    if error is not None:
        n *= effective_share(design_effect(error, changes_sd(_changes(x)), n), error.df, level)
    return Worth(n, _n_items(x, by_item), _doubt(x, by_item, by_rater))


def _n_items(x: FloatArray, by_item: IntArray | None) -> int:
    return len(x) if by_item is None else int(by_item.max()) + 1


def _doubt(x: FloatArray, by_item: IntArray | None, by_rater: IntArray | None) -> str | None:
    """Too few raters, or too few items (of which as few as pairs are needed where each vote stands alone)."""
    n_items = _n_items(x, by_item)
    alone = n_items == len(x) and not are_units(by_rater)
    return _rater_doubt(by_rater) or units_doubt(n_items, MIN_PAIRS if alone else MIN_UNITS)


def _checked_votes(votes: npt.ArrayLike) -> FloatArray:
    """[V] +1, 0 or -1 for each vote."""
    x: FloatArray = 2 * checked_cases(votes, ndim=1) - 1
    wrong = x[(x != -1) & (x != 0) & (x != 1)]
    if len(wrong):
        raise InvalidEvidence(f"votes: {(wrong[0] + 1) / 2:g} is no vote; 1 is a win, 0.5 a tie, 0 a loss")
    return x


def _changes(x: FloatArray) -> Changes:
    return Changes(float(np.sum(x > 0)), float(np.sum(x < 0)), len(x))


def _error(x: FloatArray, by_item: IntArray | None, by_rater: IntArray | None) -> ClusteredError | None:
    """The error of the mean vote: by items and raters, by one of them, or None where all votes stand alone."""
    item = clustered_error(x, by_item) if are_units(by_item) else None
    if not are_units(by_rater):
        return item
    n_items = len(x) if by_item is None else int(by_item.max()) + 1
    # Raters are few, and t quantiles of so few degrees of freedom make up for that.
    rater = replace(clustered_error(x, by_rater), n_clusters=n_items, n_differing=len(x))
    if item is None or by_item is None:
        return rater
    cells = by_item * (by_rater.max() + 1) + by_rater
    shared = clustered_error(x, np.unique(cells, return_inverse=True)[1]).se
    variance = max(item.se**2 + rater.se**2 - shared**2, item.se**2, rater.se**2)
    return replace(item, se=math.sqrt(variance), df=min(item.df, rater.df), n_differing=len(x))


def _rater_doubt(by_rater: IntArray | None) -> str | None:
    if by_rater is None or by_rater.max() + 1 >= MIN_RATERS:
        return None
    n = int(by_rater.max()) + 1
    who = "one rater alone says" if n == 1 else f"{n} raters alone say"
    return f"{who} nothing about others: at least {MIN_RATERS} are needed"
