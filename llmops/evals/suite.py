"""Suites: which cases are asked, how answers are decoded and what scores them (`evals/suites/*.yaml`).

A suite's digest covers its settings and the resolved cases, so two reports with one suite digest answered the
same questions in the same way.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from llmops.data import find_snapshot, load_pool, read_rows
from llmops.errors import DataError
from llmops.records import Case, Dropped, Row
from llmops.registry.adapters import Registry
from llmops.schema import digest_of
from llmops.settings import load_yaml


class DatasetCases(BaseModel):
    """Cases from a pool of a dataset's newest snapshot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dataset"]
    name: str
    """The dataset's name."""
    pool: Literal["gate", "rate"] = "gate"
    """The pool; what was trained on cannot be asked for."""
    n_max: int | None = Field(default=None, ge=2)
    """At most this many cases, spread over the groups; None asks them all."""
    seed: int = 0
    """Changes which cases are taken."""


class FileCases(BaseModel):
    """Cases written down in a JSONL file, in the form of data rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["file"]
    path: str
    """Relative to the suite's file."""


class Decoding(BaseModel):
    """How answers are generated: always explicit, never an engine's default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(ge=0, le=2)
    """0 takes the likeliest token each time."""
    max_tokens: int = Field(ge=1)
    """Tokens after which an answer is cut."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Share of probability that is sampled from."""
    seed: int = 0
    """Seed of sampling, sent with every request."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, besides the prompt contract's end tokens."""


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
    if isinstance(config.cases, FileCases):
        cases = cases_of(_file_rows(path.parent / config.cases.path))
    else:
        snapshot = find_snapshot(registry.store, registry.ledger, config.cases.name)
        rows = load_pool(registry.store, snapshot, config.cases.pool)
        cases = sample(cases_of(rows), config.cases.n_max, config.cases.seed)
    if len(cases) < 2:
        raise DataError(f"{path}: {len(cases)} cases; nothing can be estimated from fewer than 2, add cases")
    return Suite(config, tuple(cases))


def cases_of(rows: Iterable[Row]) -> list[Case]:
    """One case for each prompt, in order of first appearance; all its answers are references."""
    answers: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        answers[digest_of([[m.role, m.content] for m in row.messages[:-1]])].append(row)
    cases = []
    for same in answers.values():
        first = same[0]
        references = tuple(dict.fromkeys(row.messages[-1].content for row in same))
        cases.append(Case(first.messages[:-1], references, first.group, first.source))
    return cases


def sample(cases: Sequence[Case], n_max: int | None, seed: int) -> list[Case]:
    """At most `n_max` cases, taken in turn from every group, in an order set by content and seed alone.

    Each group gives one case before any gives a second. A case added to the pool displaces at most those
    after it.
    """

    def rank(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{text}".encode()).digest()

    groups: dict[str, list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda c: rank(c.digest)):
        groups[case.group].append(case)
    turns = [
        (turn, rank(group), case) for group, members in groups.items() for turn, case in enumerate(members)
    ]
    ordered = [case for _, _, case in sorted(turns, key=lambda item: item[:2])]
    return ordered[:n_max]


def _file_rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    for row in read_rows(path, path.name):
        if isinstance(row, Dropped):
            raise DataError(f"{path.parent / row.source}: {row.reason}; correct the line")
        rows.append(row)
    return rows
