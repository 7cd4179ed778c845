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
    """Scores of both systems over the cases both answered; `cases[i]` belongs to score i."""

    cases: tuple[Case, ...]
    baseline: dict[str, Scores]
    candidate: dict[str, Scores]

    def difference(self, metric: str, level: float) -> Interval:
        """The interval of candidate - baseline on the metric's own scale; `level` is that of each bound."""
        return difference(self.baseline[metric], self.candidate[metric], level)

    def only(self, rows: Sequence[int]) -> Paired:
        """The same comparison over some of the cases."""
        return Paired(
            tuple(self.cases[i] for i in rows),
            {name: only(scores, rows) for name, scores in self.baseline.items()},
            {name: only(scores, rows) for name, scores in self.candidate.items()},
        )


def pair(
    metrics: Sequence[Metric],
    cases: Sequence[Case],
    baseline: Sequence[Samples],
    candidate: Sequence[Samples],
) -> Paired | None:
    """Both systems' scores over the cases both answered; None when these are fewer than two.

    `baseline[i]` and `candidate[i]` belong to `cases[i]`. A case that errored for one system says nothing
    about the difference: it is left out for both.
    """
    both = [
        (case, a, b)
        for case, a, b in zip(cases, baseline, candidate, strict=True)
        if is_answered(a) and is_answered(b)
    ]
    if len(both) < 2:
        return None
    kept = tuple(case for case, _, _ in both)
    return Paired(
        kept,
        scores_of(metrics, kept, [a for _, a, _ in both]),
        scores_of(metrics, kept, [b for _, _, b in both]),
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
