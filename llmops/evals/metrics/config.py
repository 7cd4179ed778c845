"""How a suite spells its metrics: a word, or a mapping with `kind` and settings of its own."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from llmops.evals.metrics import METRICS
from llmops.evals.metrics.metric import Answers, Measured, Metric, mean_of_samples, texts_of


class Regex(BaseModel):
    """100 where the pattern is found in the answer, else 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["regex"]
    name: str = Field(default="regex", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")
    """What reports and gates call it."""
    pattern: str
    """A regular expression of Python's `re`, searched for anywhere in the answer."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is that of the suite."""
        del folder
        pattern = re.compile(self.pattern)

        def measure(answers: Answers) -> Measured:
            hits = [pattern.search(text) is not None for text in texts_of(answers)]
            return mean_of_samples(answers, 100 * np.array(hits, dtype=np.float64))

        return Metric(
            self.name,
            "binary",
            measure,
            lambda _: f"regex|pattern:{self.pattern}|version:1",
            needs_references=False,
        )


MetricConfig = Regex
_CONFIG: TypeAdapter[MetricConfig] = TypeAdapter(MetricConfig)


def check_metrics(spelt: tuple[Any, ...]) -> tuple[str | MetricConfig, ...]:
    """A suite's metrics as their settings.

    Raises:
        ValueError: a name that is no metric, a mapping that is no metric's, or one name for two.
    """
    configs = tuple(_known(s) if isinstance(s, str) else _CONFIG.validate_python(s) for s in spelt)
    names = [c if isinstance(c, str) else c.name for c in configs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"metric {twice} is named twice; give one of them another `name`")
    return configs


def resolve_metrics(configs: tuple[str | MetricConfig, ...], folder: Path) -> tuple[Metric, ...]:
    """The metrics of a suite in `folder`, in its order."""
    return tuple(METRICS[c] if isinstance(c, str) else c.metric(folder) for c in configs)


def _known(name: str) -> str:
    if name in METRICS:
        return name
    close = difflib.get_close_matches(name, METRICS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(METRICS)}"
    raise ValueError(f"{name} is not a metric; {hint}")
