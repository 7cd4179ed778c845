"""A canary's plan, declared before it begins: its steps, what live votes must show at each, and what it must hold.

One YAML file each; reads nothing else.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmops.records import SloRule, VoteRule
from llmops.settings import load_yaml

MIN_COMPARISONS = 12
"""Comparisons from which on their bounds hold their level (`llmops.stats.guard`)."""

Share = Annotated[float, Field(gt=0, lt=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VotePlan(_Settings):
    """The sequential test on the votes of live users: thumbs, stars, and votes between two answers."""

    looks: tuple[Annotated[int, Field(ge=MIN_COMPARISONS)], ...] = Field(min_length=1, max_length=20)
    """Numbers of comparisons with the champion, one a step: step k is left at look k, or at a later one."""
    margin: float = Field(0.1, gt=0, lt=0.5)
    """How far below an even win rate (0.5) the canary may lie; clearly below that aborts it."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """One-sided error of all looks together (O'Brien-Fleming spending)."""


class SloPlan(_Settings):
    """What the canary must hold in every window of requests."""

    min_requests: int = Field(50, ge=20)
    """Answers of canary and champion, each, that make a window; fewer decide nothing."""
    max_error_share: float = Field(0.02, ge=0, lt=1)
    """Largest share of failed answers."""
    ttft_p95_ms: float | None = Field(None, gt=0)
    """Largest 95th percentile of the time to the first token of streams, in ms; left out: not held against it."""


class CanaryPlan(_Settings):
    """Everything a canary's controller goes by."""

    steps: tuple[Share, ...] = Field(min_length=1, max_length=20)
    """Shares of the traffic, rising."""
    votes: VotePlan | None = None
    """Left out: the share stays at its one step, for a person to decide."""
    slo: SloPlan = SloPlan()
    """What aborts it, and must hold for it to go up."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        looks = self.votes.looks if self.votes else ()
        if any(a >= b for values in (self.steps, looks) for a, b in pairwise(values)):
            raise ValueError("steps and looks must rise")
        if self.votes is not None and len(looks) != len(self.steps):
            raise ValueError(f"{len(self.steps)} steps and {len(looks)} looks; declare one look a step")
        if self.votes is None and len(self.steps) > 1:
            raise ValueError("several steps need votes to go up by; declare votes, or one step")
        return self

    def vote_rule(self) -> VoteRule | None:
        """The votes' part as a rollout's record carries it."""
        return None if self.votes is None else VoteRule(self.votes.looks, self.votes.margin, self.votes.alpha)

    def slo_rule(self) -> SloRule:
        """The figures' part as a rollout's record carries it."""
        return SloRule(self.slo.min_requests, self.slo.max_error_share, self.slo.ttft_p95_ms)


def load_canary_plan(path: Path) -> CanaryPlan:
    """The plan in a YAML file.

    Raises:
        ConfigError: it cannot be read, or says something wrong; names the setting.
    """
    return load_yaml(path, CanaryPlan)
