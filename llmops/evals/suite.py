"""Suites: which cases are asked, how answers are decoded and what scores them (`evals/suites/*.yaml`).

A suite's digest covers its settings and the resolved cases, so two reports with one suite digest answered the
same questions in the same way.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from llmops.data import resolve_cases
from llmops.data.cases import DatasetCases, FileCases
from llmops.engines.decoding import Decoding
from llmops.errors import DataError
from llmops.records import Case
from llmops.registry.adapters import Registry
from llmops.schema import digest_of
from llmops.settings import load_yaml


class SuiteConfig(BaseModel):
    """A suite as its file spells it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """Shown in reports."""
    cases: Annotated[DatasetCases | FileCases, Field(discriminator="kind")]
    """What is asked."""
    metrics: tuple[str, ...] = Field(min_length=1)
    """Names of metrics; the first one orders the worst and best cases on the page."""
    decoding: Decoding
    """How answers are generated."""
    max_errored_frac: float = Field(default=0.0, ge=0, lt=1)
    """Share of cases that may end without an answer before a report is no evidence."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from llmops.evals.metrics import METRICS  # scipy: not needed to print a help text

        for name in names:
            if name not in METRICS:
                close = difflib.get_close_matches(name, METRICS, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(METRICS)}"
                raise ValueError(f"{name} is not a metric; {hint}")
        if len(set(names)) != len(names):
            raise ValueError("a metric is named twice")
        return names


@dataclass(frozen=True)
class Suite:
    """A suite with its cases resolved, in the order they are asked."""

    config: SuiteConfig
    cases: tuple[Case, ...]

    @property
    def cases_digest(self) -> str:
        """Digest over the ordered case digests, as reports carry it."""
        return digest_of([case.digest for case in self.cases])

    @property
    def digest(self) -> str:
        """Digest of settings and resolved cases."""
        return digest_of({"config": self.config.model_dump(mode="json"), "cases": self.cases_digest})


def load_suite(path: Path, registry: Registry) -> Suite:
    """The suite in a YAML file, its cases read and sampled.

    Raises:
        ConfigError: the file does not say what it must.
        BadRequest: its dataset was never built.
        DataError: a case's file is missing, has a bad line, or there are fewer than two cases.
        InvalidEvidence: the dataset's files were altered.
    """
    config = load_yaml(path, SuiteConfig)
    cases = resolve_cases(config.cases, path.parent, registry.store, registry.ledger)
    if len(cases) < 2:
        raise DataError(f"{path}: {len(cases)} cases; nothing can be estimated from fewer than 2, add cases")
    return Suite(config, tuple(cases))
