"""How probable a system finds the references: negative log-likelihood a token, and perplexity.

Reads the logprobs that completions carry (`reference_logprob`, `n_reference_tokens`), those of the case's first
reference as the answer. They compare systems with one tokenizer only: of one base.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from llmops.errors import InvalidEvidence
from llmops.evals.metrics.metric import Answers, Measured, Metric
from llmops.stats import FloatArray

NATS = "nats per token"
PERPLEXITY = "perplexity"


def nll_from_stats(summed: FloatArray) -> FloatArray:
    """Mean negative log-likelihood of a token; `summed` is [R, 2] nats and tokens."""
    nll: FloatArray = summed[:, 0] / summed[:, 1]
    return nll


def perplexity_from_stats(summed: FloatArray) -> FloatArray:
    """Perplexity of a token, exp of the mean negative log-likelihood; `summed` is [R, 2] nats and tokens."""
    return np.exp(nll_from_stats(summed))


def _measure(name: str, of_stats: Callable[[FloatArray], FloatArray], answers: Answers) -> Measured:
    """Every token weighs the same over all cases; a case's own number is that of its tokens alone."""
    stats = np.array([_stats(name, answers, i) for i in range(len(answers))], dtype=np.float64)
    return Measured(float(of_stats(stats.sum(axis=0)[None])[0]), of_stats(stats), stats)


def _stats(name: str, answers: Answers, i: int) -> tuple[float, float]:
    """Nats and tokens of case i, the mean over its samples (which all stand for the same reference)."""
    nats, n_tokens = 0.0, 0.0
    for sample in answers[i].samples:
        if sample.reference_logprob is None or not sample.n_reference_tokens:
            raise InvalidEvidence(
                f"score: case {answers[i].case.source} has no logprob of its reference, and {name} needs one; evaluate "
                "again through an endpoint that gives prompt logprobs"
            )
        nats -= sample.reference_logprob
        n_tokens += sample.n_reference_tokens
    return nats / len(answers[i].samples), n_tokens / len(answers[i].samples)


def _metric(name: str, unit: str, of_stats: Callable[[FloatArray], FloatArray]) -> Metric:
    return Metric(
        name,
        "corpus",
        partial(_measure, name, of_stats),
        lambda _: f"{name}|reference:first|weight:token|log:natural|version:1",
        of_stats,
        better="lower",
        unit=unit,
        needs_reference_logprobs=True,
    )


LIKELIHOOD: dict[str, Metric] = {
    "nll": _metric("nll", NATS, nll_from_stats),
    "perplexity": _metric("perplexity", PERPLEXITY, perplexity_from_stats),
}
