"""Gate files (`evals/gates/*.yaml`): what must hold of a candidate, and the digest that is declared before it is asked.

Every target names a metric of one of the gate's suites; a metric of which less is better has its margin on the worse
side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from llmops.evals.gate.judge_rules import JudgeRules
from llmops.evals.gate.people import RatingRules
from llmops.schema import digest_of
from llmops.settings import load_yaml

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")


class Target(BaseModel):
    """Which metric of which suite is looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str | None = None
    """A name among the gate's suites; the first when left out."""
    metric: str
    """A metric of that suite."""


class _WithMargin(Target):
    margin: float | str
    """How much worse is allowed: a number on the metric's scale, or a share of the baseline's value such as "10 %"."""

    @field_validator("margin")
    @classmethod
    def _usable(cls, margin: float | str) -> float | str:
        if isinstance(margin, str) and not _PERCENT.fullmatch(margin):
            raise ValueError(f'{margin!r} is no margin; write a number, or a share of the baseline as "10 %"')
        if (float(margin.rstrip("% ")) if isinstance(margin, str) else margin) <= 0:
            raise ValueError(f"{margin} allows nothing; write a margin above 0")
        return margin

    @property
    def relative(self) -> float | None:
        """The margin as a fraction of the baseline's value, where it is spelt as one."""
        return float(self.margin.rstrip("% ")) / 100 if isinstance(self.margin, str) else None


class Guardrail(_WithMargin):
    """The candidate may be worse than the baseline by less than a margin."""


class NonInferior(_WithMargin):
    """As the primary metric: the candidate may be worse by less than a margin."""

    kind: Literal["non_inferior"]


class Superior(Target):
    """As the primary metric: the candidate must be better by more than `by`."""

    kind: Literal["superior"]
    by: float = Field(default=0.0, ge=0)
    """On the metric's scale."""


Primary = Annotated[NonInferior | Superior, Field(discriminator="kind")]


class SliceRule(_WithMargin):
    """The candidate may be worse by less than a margin in each group of a slice, not only on average.

    Every one of `groups` must be shown to be no worse. With `exploratory` the groups are those found, and one fails
    when it is shown to be worse than the margin (Benjamini-Hochberg over all exploratory groups): a search for harm,
    which finds nothing where there is too little to see.
    """

    slice: str
    """Key of the cases' slices."""
    groups: tuple[str, ...] = ()
    """Values of the key."""
    exploratory: bool = False
    """Search the groups found for harm instead of asking a proof of each."""
    min_cases: int = Field(default=20, ge=2)
    """A group of fewer decides nothing."""

    @model_validator(mode="after")
    def _says_which(self) -> SliceRule:
        if bool(self.groups) == self.exploratory:
            raise ValueError("declare `groups`, or `exploratory: true` for those that are found; not both")
        return self


class GapRule(Target):
    """The candidate's mean scores of any two groups of a slice may lie apart by less than `max_gap`."""

    slice: str
    """Key of the cases' slices."""
    groups: tuple[str, ...] = Field(min_length=2)
    """Values of the key."""
    max_gap: float = Field(gt=0)
    """On the metric's scale."""
    min_cases: int = Field(default=20, ge=2)
    """A group of fewer decides nothing."""


class PairRule(Target):
    """Cases of one `pair` differ in what must not matter: a name, a pronoun, a dialect's word.

    A pair differs when its scores do. At least one of the three limits is set.
    """

    max_differing: float | None = Field(default=None, gt=0, lt=100)
    """Most of the pairs, in %, whose scores may differ."""
    margin: float | None = Field(default=None, gt=0, lt=100)
    """By how much more of the pairs, in points, may differ for the candidate than for the baseline."""
    variants: str | None = None
    """Key of the slice that says which variant a case is; needed for `max_gap`."""
    max_gap: float | None = Field(default=None, gt=0)
    """Most by which the mean scores of two variants may lie apart, over the same pairs."""
    min_cases: int = Field(default=20, ge=2)
    """Fewer pairs decide nothing."""

    @model_validator(mode="after")
    def _limits(self) -> PairRule:
        if self.max_differing is None and self.margin is None and self.max_gap is None:
            raise ValueError("set max_differing, margin or max_gap: nothing is asked of the pairs")
        if (self.max_gap is None) != (self.variants is None):
            raise ValueError(
                "max_gap needs `variants`, the slice that says which variant a case is, and it max_gap"
            )
        return self


class GateConfig(BaseModel):
    """A gate as its file spells it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME)
    """Shown in decisions."""
    public_name: str = Field(pattern=NAME)
    """The model name that a PASS may move."""
    suite: str | None = None
    """The suite's file, relative to this one: short for `suites` with one of them."""
    suites: dict[str, str] = Field(default_factory=dict)
    """Suites' files by the names that targets use; the first is what is meant where none is named."""
    baseline: str = Field(default="champion", min_length=1)
    """What the candidate is compared with: `champion` (the base while there is none), `base`, or an adapter."""
    level: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of each bound: 0.95 decides one-sided at 5 %."""
    power: float = Field(default=0.8, gt=0, lt=1)
    """Probability of a PASS at the number of cases that is said to be needed."""
    min_cases: int = Field(default=32, ge=2)
    """Fewer cases decide nothing: the intervals keep their level from about this many on."""
    primary: Primary | None = None
    """What the change is for."""
    guardrails: tuple[Guardrail, ...] = ()
    """What must not get worse; all of it."""
    any_improved: tuple[Target, ...] = ()
    """At least one must be better than the baseline (Holm over all of them)."""
    slices: tuple[SliceRule, ...] = ()
    """What must not get worse in any declared group of cases."""
    gaps: tuple[GapRule, ...] = ()
    """Groups of cases between which the candidate must not differ."""
    pairs: tuple[PairRule, ...] = ()
    """Pairs of cases that must be answered alike."""
    ratings: RatingRules | None = None
    """What people must have said; nobody is asked when left out."""
    judge: JudgeRules | None = None
    """What a language model that compares answers must have said; none is asked when left out."""
    approvals: int = Field(default=0, ge=0, le=16)
    """How many people must approve a PASS before it may be promoted."""

    @model_validator(mode="after")
    def _whole(self) -> GateConfig:
        if (self.suite is None) == (not self.suites):
            raise ValueError("name a `suite`, or several by name under `suites`; not both")
        if (
            self.primary is None
            and not any(
                (self.guardrails, self.any_improved, self.slices, self.gaps, self.pairs, self.ratings)
            )
            and (self.judge is None or self.judge.calibrated_on is None)
        ):
            raise ValueError(
                "asks nothing: set primary, guardrails, any_improved, slices, gaps, pairs, ratings, or a calibrated "
                "judge"
            )
        if self.judge is not None and self.judge.suite not in (None, *self.files):
            raise ValueError(
                f"judge.suite: {self.judge.suite} is not among its suites: {', '.join(self.files)}"
            )
        for target in self.targets():
            if target.suite is not None and target.suite not in self.files:
                raise ValueError(f"{target.suite} is not among its suites: {', '.join(self.files)}")
        return self

    @property
    def files(self) -> dict[str, str]:
        """Suites' files (relative to the gate's) by name, the one that is meant by default first."""
        return {Path(self.suite).stem: self.suite} if self.suite is not None else self.suites

    @property
    def first(self) -> str:
        """Name of the suite that is meant where none is named."""
        return next(iter(self.files))

    def suite_of(self, target: Target) -> str:
        """Name of the suite that a target is about."""
        return target.suite or self.first

    def targets(self) -> Iterator[Target]:
        """Everything that the gate looks at, in the order of its file."""
        yield from () if self.primary is None else (self.primary,)
        for group in (self.guardrails, self.any_improved, self.slices, self.gaps, self.pairs):
            yield from group

    @property
    def digest(self) -> str:
        """Digest of everything the file says."""
        return digest_of(self.model_dump(mode="json"))


def load_gate(path: Path) -> GateConfig:
    """The gate in a YAML file; its digest covers what its judge's file says.

    Raises:
        ConfigError: it, or its judge's file, does not say what it must.
    """
    gate = load_yaml(path, GateConfig)
    if gate.judge is None:
        return gate
    digest = gate.judge.judge(path.parent).digest
    return gate.model_copy(update={"judge": gate.judge.model_copy(update={"digest": digest})})
