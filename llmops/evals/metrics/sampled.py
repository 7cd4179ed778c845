"""What several samples of a case come to: pass@k."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llmops.errors import ConfigError, DataError
from llmops.evals.metrics.metric import Answer, Answers, Measured, Metric
from llmops.stats import FloatArray


def pass_at_k(name: str, of: Metric, k: int) -> Metric:
    """The chance, in points, that one of k samples passes a yes-or-no metric.

    Raises:
        ConfigError: the metric is graded: nothing passes or fails it.
    """
    if of.kind != "binary":
        raise ConfigError(
            f"{name}: {of.name} is no yes-or-no metric; take exact_match, regex or one of that kind"
        )

    def measure(answers: Answers) -> Measured:
        per_case = 100 * estimate(_n_passed(of, answers), len(answers[0].samples), k)
        return Measured(float(per_case.mean()), per_case)

    return replace(
        of,
        name=name,
        kind="mean",
        measure=measure,
        signature=lambda answers: (
            f"pass@{k}|samples:{len(answers[0].samples)}|of:({of.signature(answers)})|version:1"
        ),
        min_samples=max(k, of.min_samples),
    )


def estimate(n_passed: FloatArray, n: int, k: int) -> FloatArray:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k) of each case's chance that one of k samples passes.

    Source: Chen et al., Evaluating large language models trained on code (2021), equation 1.

    Args:
        n_passed: [N] of the n samples of each case.
        n: samples a case.
        k: at most n.

    Returns:
        [N] in [0, 1].

    >>> estimate(np.array([0.0, 1.0, 2.0, 5.0]), n=5, k=2).round(3).tolist()
    [0.0, 0.4, 0.7, 1.0]
    """
    left = n - np.asarray(n_passed, dtype=np.float64)[:, None]
    none_of_k: FloatArray = np.prod(np.maximum(left - np.arange(k), 0) / (n - np.arange(k)), axis=1)
    return 1 - none_of_k


def _n_passed(of: Metric, answers: Answers) -> FloatArray:
    """[N] how many samples of each case pass; every sample is measured as an answer of its own."""
    n = len(answers[0].samples)
    uneven = next((a for a in answers if len(a.samples) != n), None)
    if uneven is not None:
        raise DataError(
            f"score: case {uneven.case.source} has {len(uneven.samples)} samples, others {n}; finish the session"
        )
    single = [Answer(answer.case, (sample,)) for answer in answers for sample in answer.samples]
    hits = of.measure(single).per_case / 100
    return np.asarray(hits.reshape(len(answers), n).sum(axis=1), dtype=np.float64)
