"""Suites: which cases are asked, how answers are decoded and what scores them (`evals/suites/*.yaml`).

A suite's digest covers its settings and the resolved cases, so two reports with one suite digest answered the
same questions in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from llmops.data import resolve_cases
from llmops.data.cases import DatasetCases, FileCases
from llmops.engines.decoding import Decoding
from llmops.errors import DataError
from llmops.records import Case
from llmops.registry.adapters import Registry
from llmops.schema import digest_of
from llmops.settings import load_yaml

if TYPE_CHECKING:
    from llmops.evals.metrics import Metric


class SuiteConfig(BaseModel):
    """A suite as its file spells it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """Shown in reports."""
    cases: Annotated[DatasetCases | FileCases, Field(discriminator="kind")]
    """What is asked."""
    metrics: tuple[Any, ...] = Field(min_length=1)
    """Metrics by name, or as a mapping with `kind`; the first one orders the worst and best cases on the page."""
    decoding: Decoding
    """How answers are generated."""
    max_errored_frac: float = Field(default=0.0, ge=0, lt=1)
    """Share of cases that may end without an answer before a report is no evidence."""

    samples: int = Field(default=1, ge=1, le=256)
    """Answers to each case; sample i is drawn with `decoding.seed` + i."""
    cluster: Literal["group"] | None = None
    """Cases of one group are alike: intervals take whole groups as the unit. Null takes cases as independent."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: tuple[Any, ...]) -> tuple[Any, ...]:
        from llmops.evals.metrics.config import check_metrics  # scipy: not needed to print a help text

        return check_metrics(metrics)

    @model_validator(mode="after")
    def _samples_differ(self) -> SuiteConfig:
        if self.samples > 1 and self.decoding.temperature == 0:
            raise ValueError(
                f"samples is {self.samples} and decoding.temperature 0: all samples would be one; "
                "set a temperature, or samples 1"
            )
        return self


@dataclass(frozen=True)
class Suite:
    """A suite with its cases resolved, in the order they are asked."""

    config: SuiteConfig
    cases: tuple[Case, ...]
    metrics: tuple[Metric, ...]

    @property
    def needs_reference_logprobs(self) -> bool:
        """Whether a metric reads the log-probability of references."""
        return any(metric.needs_reference_logprobs for metric in self.metrics)

    @property
    def needs_latency(self) -> bool:
        """Whether a metric reads how long answers took, which only answers of this session say."""
        return any(metric.needs_latency for metric in self.metrics)

    @property
    def cases_digest(self) -> str:
        """Digest over the ordered case digests, as reports carry it."""
        return digest_of([case.digest for case in self.cases])

    @property
    def clusters(self) -> tuple[str, ...] | None:
        """Each case's cluster; None where the suite takes cases as independent."""
        return tuple(case.group for case in self.cases) if self.config.cluster == "group" else None

    @property
    def digest(self) -> str:
        """Digest of settings, resolved cases with their labels, and the files that metrics read."""
        return digest_of(
            {
                "config": self.config.model_dump(mode="json"),
                "cases": self.cases_digest,
                "labels": [case.labels for case in self.cases],
                "metrics": {metric.name: metric.digest for metric in self.metrics if metric.digest},
            }
        )


def load_suite(path: Path, registry: Registry) -> Suite:
    """The suite in a YAML file, its cases read and sampled.

    Raises:
        ConfigError: the file does not say what it must.
        BadRequest: its dataset was never built.
        DataError: a case's file is missing or has a bad line, there are fewer than two cases, or one without the
            reference or expectation that a metric needs.
        InvalidEvidence: the dataset's files were altered.
    """
    from llmops.evals.metrics.config import suite_metrics

    config = load_yaml(path, SuiteConfig)
    cases = resolve_cases(config.cases, path.parent, registry.store, registry.ledger)
    if len(cases) < 2:
        raise DataError(f"{path}: {len(cases)} cases; nothing can be estimated from fewer than 2, add cases")
    metrics = suite_metrics(config.metrics, path, config.samples)
    _require_references(path, metrics, cases)
    _require_groups(path, config, cases)
    for check in filter(None, (metric.check_case for metric in metrics)):
        for case in cases:
            check(case)
    return Suite(config, tuple(cases), metrics)


def _require_references(path: Path, metrics: Sequence[Metric], cases: Sequence[Case]) -> None:
    bare = next((case for case in cases if not case.references), None)
    for metric in metrics if bare else ():
        if bare and (metric.needs_references or metric.needs_reference_logprobs):
            raise DataError(
                f"{path}: case {bare.source}: has no reference, and {metric.name} needs one; "
                "give it one or leave the case out"
            )


def _require_groups(path: Path, config: SuiteConfig, cases: Sequence[Case]) -> None:
    if config.cluster == "group" and len({case.group for case in cases}) < 2:
        raise DataError(
            f"{path}: cluster is group, and all {len(cases)} cases are of group {cases[0].group}; "
            "add cases of other groups, or take out cluster"
        )
