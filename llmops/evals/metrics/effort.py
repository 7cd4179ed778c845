"""What answers cost: seconds, tokens, money. Lower is better, and no reference is needed.

A case's number is the mean over its samples; of a conversation of several turns it is that of all turns together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from llmops.errors import DataError
from llmops.evals.metrics.metric import Answers, Measured, Metric, mean_of_samples
from llmops.evals.metrics.quantiles import n_least, quantile_of
from llmops.evals.metrics.spelling import MetricSettings
from llmops.records import Completion
from llmops.stats import FloatArray


class Latency(MetricSettings):
    """Seconds from question to whole answer: their mean, median or 95th percentile over the cases."""

    kind: Literal["latency"]
    of: Literal["mean", "median", "p95"] = "mean"
    """What is reported of the cases' seconds; the median needs 5 cases, p95 needs 59."""

    @property
    def usual_name(self) -> str:
        """`latency`, with what is reported of it."""
        return "latency" if self.of == "mean" else f"latency_{self.of}"

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read."""
        del folder
        if self.of == "mean":
            return _latency_metric(self.label)
        share = 0.5 if self.of == "median" else 0.95
        return Metric(
            self.label,
            "quantile",
            partial(_quantile, self.label, share),
            lambda _: f"latency|of:{self.of}|version:1",
            better="lower",
            unit="s",
            needs_references=False,
            needs_latency=True,
            share=share,
        )


class Cost(MetricSettings):
    """Price of the tokens of 1,000 answers."""

    kind: Literal["cost"]
    prompt: float = Field(ge=0)
    """Price of a million prompt tokens."""
    completion: float = Field(ge=0)
    """Price of a million completion tokens."""
    currency: str = Field(default="USD", pattern=r"^[A-Za-z]{1,8}$")
    """What the prices are in."""

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read."""
        del folder

        def price(sample: Completion) -> float:
            return (self.prompt * sample.n_prompt_tokens + self.completion * sample.n_completion_tokens) / 1e3

        unit = f"{self.currency} per 1,000 answers"
        settings = f"cost|prompt:{self.prompt:g}|completion:{self.completion:g}|currency:{self.currency}"
        return _mean_metric(self.label, unit, price, settings)


def _quantile(name: str, share: float, answers: Answers) -> Measured:
    seconds = mean_of_samples(answers, _each(answers, _latency)).per_case
    least = n_least(share)
    if len(seconds) < least:
        raise DataError(
            f"score: {name} of {len(seconds)} cases has no bounds; evaluate {least} cases or more, or take the mean"
        )
    return Measured(quantile_of(seconds, share), seconds)


def _each(answers: Answers, number: Callable[[Completion], float]) -> FloatArray:
    return np.array([number(s) for answer in answers for s in answer.samples], dtype=np.float64)


def _latency(sample: Completion) -> float:
    return sample.latency_s


def _latency_metric(name: str) -> Metric:
    return replace(_mean_metric(name, "s", _latency, "latency|of:mean"), needs_latency=True)


def _mean_metric(name: str, unit: str, number: Callable[[Completion], float], settings: str) -> Metric:
    def measure(answers: Answers) -> Measured:
        return mean_of_samples(answers, _each(answers, number))

    return Metric(
        name,
        "mean",
        measure,
        lambda _: f"{settings}|version:1",
        better="lower",
        unit=unit,
        needs_references=False,
    )


EFFORT: dict[str, Metric] = {
    "latency": _latency_metric("latency"),
    "prompt_tokens": _mean_metric("prompt_tokens", "tokens", lambda s: s.n_prompt_tokens, "prompt_tokens"),
    "completion_tokens": _mean_metric(
        "completion_tokens", "tokens", lambda s: s.n_completion_tokens, "completion_tokens"
    ),
}
