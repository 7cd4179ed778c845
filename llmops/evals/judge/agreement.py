"""How far a judge agrees with people on the same items: accuracy where both decide, Cohen's kappa, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from llmops import stats
from llmops.evals.judge.pairwise import Outcome, figure
from llmops.records import Figure
from llmops.stats import FloatArray, Interval, Labels

OUTCOMES: tuple[str, ...] = get_args(Outcome)


def three_way(outcome: str) -> Outcome:
    """An item's outcome as a judge could have said it: both bad, and split, are ties."""
    return outcome if outcome in ("first", "second") else "tie"  # type: ignore[return-value]


def agreement_figures(
    people: Sequence[Outcome], judge: Sequence[Outcome], level: float, clusters: Labels | None = None
) -> list[Figure]:
    """Accuracy in % on the items that both decided, and kappa over all; those that can be estimated.

    `people[i]` and `judge[i]` are about one item, which is of `clusters[i]`; None where items are independent.
    """
    figures = []
    decided = [i for i, pair in enumerate(zip(people, judge, strict=True)) if "tie" not in pair]
    if len(decided) >= 2:
        same = [people[i] == judge[i] for i in decided]
        of = None if clusters is None else np.asarray(clusters)[decided]
        figures.append(figure("agreement", stats.proportion_interval(same, level, of).scaled(100)))
    kappa = cohens_kappa(people, judge, level, clusters)
    return figures if kappa is None else [*figures, figure("kappa", kappa)]


def confusion(people: Sequence[Outcome], judge: Sequence[Outcome]) -> FloatArray:
    """[3, 3] items by what people (rows) and the judge (columns) say, in the order of `OUTCOMES`."""
    table = np.zeros((3, 3))
    for p, j in zip(people, judge, strict=True):
        table[OUTCOMES.index(p), OUTCOMES.index(j)] += 1
    return table


def cohens_kappa(
    people: Sequence[Outcome], judge: Sequence[Outcome], level: float, clusters: Labels | None = None
) -> Interval | None:
    """Cohen's kappa with an interval; None where chance alone agrees always, or there are no two items.

    Each bound is the outer one of two. Student's, from each item's (or cluster's) influence on kappa, moved outwards on
    skewed influences: its variance is Fleiss, Cohen and Everitt's. And what kappa is at the exact bound of the raw
    agreement, chance being as it is seen: few disagreements show their own error badly, none not at all.

    Source: Fleiss, Cohen and Everitt, Large sample standard errors of kappa and weighted kappa, Psychological Bulletin
    72 (1969) 323-327. The large-sample interval itself errs up to 9 % where 5 % is promised, with 40 items.
    """
    n = len(people)
    p = confusion(people, judge) / max(n, 1)
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    seen, chance = float(np.trace(p)), float(rows @ columns)
    if n < 2 or chance >= 1:
        return None
    kappa = (seen - chance) / (1 - chance)
    by_chance = (
        columns[:, None] + rows[None, :] - 2 * chance
    )  # [i, j]: what an item with these two adds to chance
    influence = ((np.eye(3) - seen) * (1 - chance) - by_chance * (1 - seen)) / (1 - chance) ** 2
    cells = [(OUTCOMES.index(a), OUTCOMES.index(b)) for a, b in zip(people, judge, strict=True)]
    each = np.array([influence[cell] for cell in cells])
    mean = stats.mean_interval(each - each.mean() if np.ptp(each) else np.zeros(n), level, clusters)
    raw = stats.proportion_interval([i == j for i, j in cells], level, clusters)
    low = min(kappa + mean.low, (raw.low - chance) / (1 - chance))
    high = max(kappa + mean.high, (raw.high - chance) / (1 - chance))
    return Interval(
        kappa, max(low, -1.0), min(high, 1.0), level, n, mean.sd, "cohen's kappa", mean.n_clusters, raw.doubt
    )
