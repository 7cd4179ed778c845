"""How far a judge agrees with people on the same items: accuracy where both decide, Cohen's kappa, and the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
from scipy import special

from llmops import stats
from llmops.evals.judge.pairwise import Outcome, figure
from llmops.records import Figure
from llmops.stats import FloatArray, Interval

OUTCOMES: tuple[str, ...] = get_args(Outcome)


def three_way(outcome: str) -> Outcome:
    """An item's outcome as a judge could have said it: both bad, and split, are ties."""
    return outcome if outcome in ("first", "second") else "tie"  # type: ignore[return-value]


def agreement_figures(people: Sequence[Outcome], judge: Sequence[Outcome], level: float) -> list[Figure]:
    """Accuracy in % on the items that both decided, and kappa over all; those that can be estimated.

    `people[i]` and `judge[i]` are about one item.
    """
    figures = []
    decided = [p == j for p, j in zip(people, judge, strict=True) if "tie" not in (p, j)]
    if len(decided) >= 2:
        figures.append(figure("agreement", stats.proportion_interval(decided, level).scaled(100)))
    kappa = cohens_kappa(confusion(people, judge), level)
    return figures if kappa is None else [*figures, figure("kappa", kappa)]


def confusion(people: Sequence[Outcome], judge: Sequence[Outcome]) -> FloatArray:
    """[3, 3] items by what people (rows) and the judge (columns) say, in the order of `OUTCOMES`."""
    table = np.zeros((3, 3))
    for p, j in zip(people, judge, strict=True):
        table[OUTCOMES.index(p), OUTCOMES.index(j)] += 1
    return table


def cohens_kappa(table: FloatArray, level: float) -> Interval | None:
    """Cohen's kappa with its large-sample interval; None where chance alone agrees always, or there are no items.

    Source: Fleiss, Cohen and Everitt, Large sample standard errors of kappa and weighted kappa, Psychological Bulletin
    72 (1969) 323-327.
    """
    n = float(table.sum())
    if n < 2:
        return None
    p = table / n
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    seen, chance = float(np.trace(p)), float(rows @ columns)
    if chance >= 1:
        return None
    kappa = (seen - chance) / (1 - chance)
    margins = columns[:, None] + rows[None, :]  # [i, j]: how often the judge says i, and people j
    diagonal = float(np.sum(np.diag(p) * (1 - np.diag(margins) * (1 - kappa)) ** 2))
    off = (p - np.diag(np.diag(p))) * margins**2
    variance = diagonal + (1 - kappa) ** 2 * float(off.sum()) - (kappa - chance * (1 - kappa)) ** 2
    sd = math.sqrt(max(variance, 0.0)) / (1 - chance)
    half = float(special.ndtri(level)) * sd / math.sqrt(n)
    return Interval(
        kappa, max(kappa - half, -1.0), min(kappa + half, 1.0), level, int(n), sd, "cohen's kappa"
    )
