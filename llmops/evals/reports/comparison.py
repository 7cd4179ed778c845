"""Two systems held against each other in full: what the page, the summary and `llmops eval compare` all show.

Numbers are on each metric's own scale, candidate minus baseline. A *gain* is the same number turned so that more is
better, whatever the metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from llmops.evals.compare import Paired, only, pair, slices_of
from llmops.evals.evidence import BOUND_LEVEL, Result, Samples, clusters_of, is_answered
from llmops.evals.metrics import Metric, interval
from llmops.evals.suite import Suite
from llmops.records import Better, Case, Report
from llmops.schema import JsonDict
from llmops.stats import Interval

N_SHOWN = 6  # worst and best cases, each
MIN_SLICE = 2  # fewer cases have no interval


@dataclass(frozen=True, eq=False)
class Evaluated:
    """One suite of a session with the results of every system, the base first; `path` is the suite's file as given."""

    suite: Suite
    results: tuple[Result, ...]
    path: str

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The last system against every one before it, newest baseline first; then the others against the first."""
        last = len(self.results) - 1
        chosen = [(0, i) for i in range(1, last)] + [(i, last) for i in range(last)]
        pairs = ((self.results[a], self.results[b]) for a, b in reversed(chosen))
        how = How(clusters=self.suite.clusters)
        found = (compare(self.suite.metrics, self.suite.cases, pair, how) for pair in pairs)
        return tuple(comparison for comparison in found if comparison is not None)


@dataclass(frozen=True)
class MetricLine:
    """One metric's paired difference, and on how many cases the candidate is better, worse, equal."""

    metric: str
    unit: str
    better: Better
    baseline: float
    candidate: float
    difference: Interval
    n_better: int
    n_worse: int
    n_equal: int
    signature: str

    @property
    def side(self) -> str:
        """`+` where the whole interval says better, `-` where it says worse, else `0`, as where it is in doubt."""
        if self.difference.doubt is not None or self.difference.low <= 0 <= self.difference.high:
            return "0"
        return "+" if (self.difference.low > 0) == (self.better == "higher") else "-"


@dataclass(frozen=True)
class SliceLine:
    """A slice with the differences of every metric on it; none where it has too few cases."""

    about: str
    value: str
    n_cases: int
    metrics: tuple[MetricLine, ...]


@dataclass(frozen=True)
class CaseLine:
    """A case with both systems' samples and their scores by one metric."""

    case: Case
    baseline: Samples
    candidate: Samples
    scores: tuple[float, float]
    gain: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """A candidate against a baseline on one suite.

    `worst` and `best` are the cases with the largest losses and gains by `by`; `n_left_out` errored for one of both.
    """

    baseline: Report
    candidate: Report
    by: str
    n_cases: int
    n_left_out: int
    metrics: tuple[MetricLine, ...]
    slices: tuple[SliceLine, ...]
    worst: tuple[CaseLine, ...]
    best: tuple[CaseLine, ...]
    paired: Paired

    def line(self, metric: str) -> MetricLine:
        """The line of one metric."""
        return next(line for line in self.metrics if line.metric == metric)

    def to_dict(self) -> JsonDict:
        """Everything as plain JSON values."""
        return {
            "suite": self.candidate.suite,
            "baseline": _report_dict(self.baseline),
            "candidate": _report_dict(self.candidate),
            "n_cases": self.n_cases,
            "n_left_out": self.n_left_out,
            "metrics": [_line_dict(line) for line in self.metrics],
            "slices": [
                {
                    "slice": {part.about: part.value},
                    "n_cases": part.n_cases,
                    "metrics": [_line_dict(line) for line in part.metrics],
                }
                for part in self.slices
            ],
            "by": self.by,
            "worst": [_case_dict(line) for line in self.worst],
            "best": [_case_dict(line) for line in self.best],
        }


@dataclass(frozen=True)
class How:
    """How two results are held against each other.

    `by` is the metric that orders the cases (None: the first), `clusters` each case's cluster (`Suite.clusters`;
    None where cases are independent), `n_shown` how many of the worst and best are kept.
    """

    by: str | None = None
    clusters: Sequence[str] | None = None
    n_shown: int = N_SHOWN


def compare(
    metrics: Sequence[Metric], cases: Sequence[Case], results: tuple[Result, Result], how: How
) -> Comparison | None:
    """Hold the second of two results against the first; None when fewer than two cases were answered by both.

    Args:
        metrics: those of the suite.
        cases: the cases that both results answer, in their order.
        results: baseline and candidate.
        how: what orders the cases, and what they depend on.
    """
    before, after = results
    paired = pair(metrics, cases, before.samples, after.samples, how.clusters)
    if paired is None:
        return None
    by = how.by or metrics[0].name
    ordered = sorted(_case_lines(paired, results, cases, by), key=lambda line: line.gain)
    return Comparison(
        baseline=before.report,
        candidate=after.report,
        by=by,
        n_cases=len(paired.cases),
        n_left_out=len(cases) - len(paired.cases),
        metrics=_metric_lines(paired),
        slices=_slice_lines(paired),
        worst=tuple(line for line in ordered[: how.n_shown] if line.gain < 0),
        best=tuple(line for line in ordered[: -how.n_shown - 1 : -1] if line.gain > 0),
        paired=paired,
    )


def slice_values(suite: Suite, result: Result) -> dict[tuple[str, str], tuple[int, dict[str, Interval]]]:
    """One system's answered cases and every metric's interval on each slice; no intervals where they are too few."""
    answered = [case for case, own in zip(suite.cases, result.samples, strict=True) if is_answered(own)]
    clusters = clusters_of(suite.clusters, result.samples)
    found = {}
    for name, rows in slices_of(answered).items():
        scored = result.scores if len(rows) >= MIN_SLICE else {}
        own = None if clusters is None else [clusters[i] for i in rows]
        bounds = {metric: interval(only(scores, rows), BOUND_LEVEL, own) for metric, scores in scored.items()}
        found[name] = (len(rows), bounds)
    return found


def _metric_lines(paired: Paired) -> tuple[MetricLine, ...]:
    lines = []
    for name, before in paired.baseline.items():
        after = paired.candidate[name]
        gains = (after.per_case - before.per_case) * _sign(before.better)
        n_better, n_worse = int((gains > 0).sum()), int((gains < 0).sum())
        lines.append(
            MetricLine(
                metric=name, unit=before.unit, better=before.better, baseline=before.value, candidate=after.value,
                difference=paired.difference(name, BOUND_LEVEL), n_better=n_better, n_worse=n_worse,
                n_equal=len(gains) - n_better - n_worse, signature=after.signature,
            )
        )  # fmt: skip
    return tuple(lines)


def _slice_lines(paired: Paired) -> tuple[SliceLine, ...]:
    lines = []
    for (about, value), rows in slices_of(paired.cases).items():
        metrics = _metric_lines(paired.only(rows)) if len(rows) >= MIN_SLICE else ()
        lines.append(SliceLine(about, value, len(rows), metrics))
    return tuple(lines)


def _case_lines(
    paired: Paired, results: tuple[Result, Result], cases: Sequence[Case], by: str
) -> list[CaseLine]:
    sides = zip(cases, results[0].samples, results[1].samples, strict=True)
    answers = {case.digest: (a, b) for case, a, b in sides}
    before, after = paired.baseline[by], paired.candidate[by]
    sign = _sign(before.better)
    return [
        CaseLine(case, *answers[case.digest], (float(a), float(b)), float(sign * (b - a)))
        for case, a, b in zip(paired.cases, before.per_case, after.per_case, strict=True)
    ]


def _sign(better: Better) -> int:
    return 1 if better == "higher" else -1


def _report_dict(report: Report) -> JsonDict:
    return {
        "system": report.system,
        "model": report.model,
        "report": report.digest(),
        "session": report.session,
        "suite_digest": report.suite_digest,
        "engine": report.engine.to_pairs(),
    }


def _line_dict(line: MetricLine) -> JsonDict:
    return asdict(line) | {"side": line.side}


def _case_dict(line: CaseLine) -> JsonDict:
    return {
        "case": line.case.digest,
        "source": line.case.source,
        "messages": [m.to_turn() for m in line.case.messages],
        "references": list(line.case.references),
        "scores": {"baseline": line.scores[0], "candidate": line.scores[1]},
        "gain": line.gain,
        "baseline": [sample.text for sample in line.baseline],
        "candidate": [sample.text for sample in line.candidate],
    }
