"""Comparing two systems over the cases both answered: every metric's paired difference, also on parts of the cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmops.evals.evidence import Samples, is_answered, scores_of
from llmops.evals.metrics import Metric, Scores, difference
from llmops.records import Case
from llmops.stats import Interval


@dataclass(frozen=True, eq=False)
class Paired:
    """Scores of both systems over the cases both answered; `cases[i]` belongs to score i.

    `clusters[i]` is the cluster of case i; None where the suite takes cases as independent.
    """

    cases: tuple[Case, ...]
    baseline: dict[str, Scores]
    candidate: dict[str, Scores]
    clusters: tuple[str, ...] | None = None

    def difference(self, metric: str, level: float) -> Interval:
        """The interval of candidate - baseline on the metric's own scale; `level` is that of each bound."""
        return difference(self.baseline[metric], self.candidate[metric], level, self.clusters)

    def only(self, rows: Sequence[int]) -> Paired:
        """The same comparison over some of the cases."""
        return Paired(
            tuple(self.cases[i] for i in rows),
            {name: only(scores, rows) for name, scores in self.baseline.items()},
            {name: only(scores, rows) for name, scores in self.candidate.items()},
            None if self.clusters is None else tuple(self.clusters[i] for i in rows),
        )


def pair(
    metrics: Sequence[Metric],
    cases: Sequence[Case],
    baseline: Sequence[Samples],
    candidate: Sequence[Samples],
    clusters: Sequence[str] | None = None,
) -> Paired | None:
    """Both systems' scores over the cases both answered; None when these are fewer than two.

    `baseline[i]`, `candidate[i]` and the cluster key `clusters[i]` (`Suite.clusters`) belong to `cases[i]`. A case that
    errored for one system says nothing about the difference: it is left out for both.
    """
    rows = [i for i in range(len(cases)) if is_answered(baseline[i]) and is_answered(candidate[i])]
    if len(rows) < 2:
        return None
    kept = tuple(cases[i] for i in rows)
    return Paired(
        kept,
        scores_of(metrics, kept, [baseline[i] for i in rows]),
        scores_of(metrics, kept, [candidate[i] for i in rows]),
        None if clusters is None else tuple(clusters[i] for i in rows),
    )


def only(scores: Scores, rows: Sequence[int]) -> Scores:
    """A metric's scores on some of its cases; the value is computed anew, from sufficient statistics where it has them.

    Args:
        scores: N cases.
        rows: which of them, at least one.
    """
    index = np.asarray(rows, dtype=np.intp)
    per_case = scores.per_case[index]
    if scores.stats is None or scores.resampled is None:
        return replace(scores, per_case=per_case, value=float(per_case.mean()))
    stats = scores.stats[index]
    value = float(scores.resampled(stats.sum(axis=0, keepdims=True))[0])
    return replace(scores, per_case=per_case, stats=stats, value=value)


def slices_of(cases: Sequence[Case]) -> dict[tuple[str, str], list[int]]:
    """Which cases lie in each slice, by (what it is about, value), in the order of both names."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, case in enumerate(cases):
        for about, value in case.slices.items():
            found[about, value].append(i)
    return dict(sorted(found.items()))
