"""Comparing two systems of one session: the cases both answered, and every metric's paired difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
