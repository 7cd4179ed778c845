"""How a suite spells its metrics: a word, or a mapping with `kind` and settings of its own."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator

from llmops.errors import BadRequest, ConfigError
from llmops.evals.metrics import METRICS
from llmops.evals.metrics.checks import Contains, Expected, Limits, Regex, ToolCalls
from llmops.evals.metrics.corpus import Bleu, Chrf, Ter
from llmops.evals.metrics.effort import Cost, Latency
from llmops.evals.metrics.embedding import Embedding
from llmops.evals.metrics.function import Function
from llmops.evals.metrics.hub import Evaluate
from llmops.evals.metrics.json_output import Json, JsonSchema
from llmops.evals.metrics.matching import ExactMatch, TokenF1
from llmops.evals.metrics.metric import Metric
from llmops.evals.metrics.rouge import Rouge
from llmops.evals.metrics.sampled import pass_at_k
from llmops.evals.metrics.spelling import MetricSettings
from llmops.explain import explain


class PassAtK(MetricSettings):
    """The chance that one of k samples passes a yes-or-no metric; the suite must draw k samples or more."""

    kind: Literal["pass_at_k"]
    k: int = Field(ge=1, le=256)
    """How many samples one may choose from."""
    of: Any
    """The yes-or-no metric, as a word or as a mapping."""

    @field_validator("of")
    @classmethod
    def _known(cls, of: Any) -> Any:
        return _settings(of)

    @property
    def usual_name(self) -> str:
        """`pass_at_` and k."""
        return f"pass_at_{self.k}"

    def metric(self, folder: Path) -> Metric:
        """The metric.

        Raises:
            ConfigError: what it is of is graded, or a file of it does not say what it must.
        """
        return pass_at_k(self.label, _resolved(self.of, folder), self.k)


MetricConfig = Annotated[
    Bleu | Chrf | Ter | Rouge | ExactMatch | TokenF1 | Regex | Contains | Json | JsonSchema | ToolCalls | Limits
    | Expected | Embedding | Evaluate | Function | Latency | Cost | PassAtK,
    Field(discriminator="kind"),
]  # fmt: skip
_CONFIG: TypeAdapter[MetricSettings] = TypeAdapter(MetricConfig)
_BY_KIND: dict[str, type[MetricSettings]] = {
    get_args(model.model_fields["kind"].annotation)[0]: model for model in get_args(get_args(MetricConfig)[0])
}


def check_metrics(spelt: tuple[Any, ...]) -> tuple[str | MetricSettings, ...]:
    """A suite's metrics as their settings.

    Raises:
        ValueError: a name that is no metric, a mapping that is no metric's, or one name for two.
    """
    configs = tuple(_settings(s) for s in spelt)
    names = [c if isinstance(c, str) else c.label for c in configs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"metric {twice} is named twice; give one of them another `name`")
    return configs


def resolve_metrics(configs: tuple[str | MetricSettings, ...], folder: Path) -> tuple[Metric, ...]:
    """The metrics of a suite in `folder`, in its order.

    Raises:
        BadRequest: a file or model that one of them reads is missing or does not say what it must.
        CouldNotRun: the package index did not deliver a model.
    """
    return tuple(_resolved(config, folder) for config in configs)


def suite_metrics(
    configs: tuple[str | MetricSettings, ...], suite: Path, n_samples: int
) -> tuple[Metric, ...]:
    """The metrics of a suite that is about to be run, in its order.

    Args:
        configs: what `check_metrics` gave.
        suite: its file.
        n_samples: how many samples it draws of each case.

    Raises:
        ConfigError: as `resolve_metrics`, or a metric needs more samples; names the suite.
        CouldNotRun: the package index did not deliver a model.
    """
    try:
        metrics = resolve_metrics(configs, suite.parent)
    except BadRequest as error:
        raise ConfigError(f"{suite}: metrics: {error}") from error
    for metric in metrics:
        if metric.min_samples > n_samples:
            raise ConfigError(
                f"{suite}: metrics: {metric.name} needs {metric.min_samples} samples a case, and samples is "
                f"{n_samples}; set samples: {metric.min_samples} or more"
            )
    return metrics


def _resolved(config: str | MetricSettings, folder: Path) -> Metric:
    return METRICS[config] if isinstance(config, str) else config.metric(folder)


def _settings(spelt: Any) -> str | MetricSettings:
    if isinstance(spelt, str):
        return _known(spelt)
    if isinstance(spelt, MetricSettings):
        return spelt
    try:
        return _CONFIG.validate_python(spelt)
    except ValidationError as error:
        kind = spelt.get("kind") if isinstance(spelt, dict) else None
        where = f"metric of kind {kind}: " if kind in _BY_KIND else "metric: "
        raise ValueError(where + explain(error, _BY_KIND.get(str(kind), BaseModel), spelt)) from None


def _known(name: str) -> str:
    if name in METRICS:
        return name
    close = difflib.get_close_matches(name, METRICS, n=1)
    if not close and name in _BY_KIND:
        raise ValueError(f"{name} needs settings; write a mapping with `kind: {name}`")
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(METRICS)}"
    raise ValueError(f"{name} is not a metric; {hint}")
