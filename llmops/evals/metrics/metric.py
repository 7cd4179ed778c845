"""What a metric is, what it gives, and how two systems are compared by it.

A metric turns answers into one number a case and a number to report. What is ours is keeping each case's sufficient
statistics, so that `llmops.stats` compares two systems without scoring text again. Nothing here reads or writes files
or knows of engines.

Shapes: N cases, S sufficient statistics, R rows scored together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from llmops import stats
from llmops.errors import DataError, InvalidEvidence
from llmops.evals.metrics.quantiles import paired_quantile, quantile_interval
from llmops.evals.metrics.resampling import Resampling, bootstrap, paired_bootstrap
from llmops.records import Better, Case, Completion
from llmops.stats import CorpusScore, FloatArray, Interval, Labels

Kind = Literal["corpus", "mean", "binary", "quantile"]
POINTS = "points"
"""The unit of metrics that lie between 0 and 100."""


@dataclass(frozen=True)
class Answer:
    """What a system said to one case: its samples, one or more, all of them answered."""

    case: Case
    samples: tuple[Completion, ...]


Answers: TypeAlias = Sequence[Answer]
"""One system's answers to N cases; every case has as many samples."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A metric's numbers: the value to report, each case's own [N], for corpus metrics what it is made of [N, S]."""

    value: float
    per_case: FloatArray
    stats: FloatArray | None = None


Together: TypeAlias = Callable[[Sequence[str], Answers], list[Measured]]
"""Several parts of one family measured in one go; the numbers in the order of the parts."""


@dataclass(frozen=True)
class Metric:
    """A way to score answers.

    `kind` picks the comparison: `binary` where every case scores 0 or 100, `mean` where the value is the mean of the
    cases' scores, `corpus` where it is `resampled` of their summed statistics ([R, S] -> [R]), `quantile` where it is
    the score that a `share` of the cases does not exceed. `signature` names all that could change the number; `digest`
    covers files that it reads (a schema, a function), "" without any. A metric in points lies between 0 and 100; others
    have no bounds. Where one has `needs_reference_logprobs`, every completion of the suite carries `reference_logprob`
    and `n_reference_tokens`; where one has `needs_latency`, none is cached. `min_samples` says how many samples a case
    must have. With `resamples` the intervals of a corpus metric come from as many bootstrap resamples, else from the
    jackknife. Metrics that have one `together` are measured in one go, each as the `part` that it is called there.
    `check_case` raises DataError for a case that the metric cannot score whatever is answered.
    """

    name: str
    kind: Kind
    measure: Callable[[Answers], Measured]
    signature: Callable[[Answers], str]
    resampled: CorpusScore | None = None
    better: Better = "higher"
    unit: str = POINTS
    needs_references: bool = True
    needs_reference_logprobs: bool = False
    needs_latency: bool = False
    digest: str = ""
    min_samples: int = 1
    resamples: int = 0
    share: float = 0.5
    together: Together | None = None
    part: str = ""
    check_case: Callable[[Case], object] | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """One metric of one system on N cases.

    `value` is the number to report. `per_case` [N] is each case's own score, the mean over its samples: for `mean` and
    `binary` metrics its mean is `value`; for `corpus` metrics it is the sentence-level score, for display only, and
    `stats` [N, S] holds what `value` is made of. Where a case has several samples a `binary` metric is `mean`.
    """

    metric: str
    kind: Kind
    value: float
    per_case: FloatArray
    stats: FloatArray | None
    signature: str
    resampled: CorpusScore | None = None
    better: Better = "higher"
    unit: str = POINTS
    resamples: int = 0
    share: float = 0.5


def score(metrics: Sequence[Metric], answers: Answers) -> dict[str, Scores]:
    """Scores by each metric's name, in the order given.

    Raises:
        DataError: nothing to score, a case without a reference where a metric needs one (every score of it would be
            made up), or fewer samples than a metric needs.
    """
    if not answers:
        raise DataError("score: 0 completions have no score; evaluate at least one case")
    for metric in metrics:
        _check_answers(metric, answers)
    measured = _measure_all(metrics, answers)
    return {m.name: _scores(m, answers, found) for m, found in zip(metrics, measured, strict=True)}


def interval(scores: Scores, level: float = 0.95, clusters: Labels | None = None) -> Interval:
    """The interval of one system's value; `level` is that of each bound (0.95: a two-sided 90 % interval).

    Args:
        scores: the system's scores of N cases.
        level: confidence of each bound.
        clusters: [N] each case's cluster; None where cases are independent.

    Raises:
        InvalidEvidence: fewer than 2 cases.
    """
    if scores.kind == "mean":
        return stats.mean_interval(scores.per_case, level, clusters)
    if scores.kind == "binary":
        return stats.proportion_interval(scores.per_case / 100, level, clusters).scaled(100)
    if scores.kind == "quantile":
        return quantile_interval(scores.per_case, scores.share, level, clusters)
    stats_n, resampled = _corpus_parts(scores)
    if scores.resamples:
        return bootstrap(stats_n, resampled, level, Resampling(scores.resamples, clusters))
    return stats.corpus_interval(stats_n, resampled, level, clusters)


def difference(a: Scores, b: Scores, level: float = 0.95, clusters: Labels | None = None) -> Interval:
    """The interval of b - a over the same cases in the same order, by the test that fits the metric's kind.

    Where that test is in doubt about points of independent cases, bounds without an approximation take its place.

    Args:
        a: the baseline's scores.
        b: the candidate's scores.
        level: confidence of each bound; 0.95 decides a one-sided test at 5 %.
        clusters: [N] each case's cluster; None where cases are independent.

    Raises:
        InvalidEvidence: two metrics, two signatures or two numbers of cases: the numbers are not comparable.
    """
    if (a.metric, a.signature) != (b.metric, b.signature):
        raise InvalidEvidence(
            f"difference: {a.metric} ({a.signature}) and {b.metric} ({b.signature}) are not comparable; "
            "score both systems with the same metric and versions"
        )
    if a.kind == "mean":
        return _certain(stats.paired_t(a.per_case, b.per_case, level, clusters), a, b)
    if a.kind == "binary":
        return _certain(
            stats.paired_binary(a.per_case / 100, b.per_case / 100, level, clusters).scaled(100), a, b
        )
    if a.kind == "quantile":
        return paired_quantile((a.per_case, b.per_case), a.share, level, clusters)
    stats_a, resampled = _corpus_parts(a)
    stats_b, _ = _corpus_parts(b)
    if a.resamples:
        return paired_bootstrap((stats_a, stats_b), resampled, level, Resampling(a.resamples, clusters))
    return stats.paired_corpus(stats_a, stats_b, resampled, level, clusters)


def _certain(found: Interval, a: Scores, b: Scores) -> Interval:
    """The interval itself, or wider bounds where it is in doubt and such bounds exist.

    A metric that gives 0 to every answer of both systems stays in doubt: it tells nothing from nothing.
    """
    bounded = a.unit == POINTS and 0 < max(a.per_case.max(), b.per_case.max()) <= 100
    if found.doubt is None or found.n_clusters is not None or not bounded:
        return found
    return stats.paired_bounded(a.per_case, b.per_case, found.level, 100.0)


def mean_of_samples(answers: Answers, per_sample: FloatArray) -> Measured:
    """Mean-type numbers from one score a sample, in the order of `texts_of`: a case's score is its samples' mean."""
    n_each = np.array([len(answer.samples) for answer in answers])
    starts = np.cumsum([0, *n_each])[:-1]
    per_case: FloatArray = np.add.reduceat(per_sample, starts) / n_each
    return Measured(float(per_case.mean()), per_case)


def texts_of(answers: Answers) -> list[str]:
    """The texts of all samples, case by case."""
    return [sample.text for answer in answers for sample in answer.samples]


def references_of(answers: Answers) -> list[tuple[str, ...]]:
    """The references that belong to each text of `texts_of`."""
    return [answer.case.references for answer in answers for _ in answer.samples]


def n_references(answers: Answers) -> int | None:
    """The number of references where all cases have as many, else None."""
    counts = {len(answer.case.references) for answer in answers}
    return counts.pop() if len(counts) == 1 else None


def _check_answers(metric: Metric, answers: Answers) -> None:
    for answer in answers:
        where = f"score: case {answer.case.source}"
        if metric.needs_references and not answer.case.references:
            raise DataError(
                f"{where} has no reference, and {metric.name} needs one; give it one or leave the case out"
            )
        if len(answer.samples) < metric.min_samples:
            raise DataError(
                f"{where} has {len(answer.samples)} samples, and {metric.name} needs {metric.min_samples}; "
                f"set samples: {metric.min_samples} or more in the suite"
            )


def _measure_all(metrics: Sequence[Metric], answers: Answers) -> list[Measured]:
    """Each metric's numbers, those of one family in one pass over the texts."""
    found: dict[str, Measured] = {}
    for metric in metrics:
        if metric.name in found:
            continue
        if metric.together is None:
            found[metric.name] = metric.measure(answers)
            continue
        family = [m for m in metrics if m.together is metric.together]
        measured = metric.together([m.part for m in family], answers)
        found.update((m.name, one) for m, one in zip(family, measured, strict=True))
    return [found[metric.name] for metric in metrics]


def _scores(metric: Metric, answers: Answers, found: Measured) -> Scores:
    sampled = any(len(answer.samples) > 1 for answer in answers)
    kind: Kind = "mean" if metric.kind == "binary" and sampled else metric.kind
    return Scores(
        metric.name, kind, found.value, found.per_case, found.stats, metric.signature(answers),
        metric.resampled, metric.better, metric.unit, metric.resamples, metric.share,
    )  # fmt: skip


def _corpus_parts(scores: Scores) -> tuple[FloatArray, CorpusScore]:
    if scores.stats is None or scores.resampled is None:
        raise InvalidEvidence(f"{scores.metric}: no sufficient statistics; score the completions again")
    return scores.stats, scores.resampled
