"""What a campaign's YAML file says (`feedback_ui/*.yaml`). Paths in it are relative to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from llmops.engines.decoding import Decoding
from llmops.settings import load_yaml

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Question = Annotated[str, Field(min_length=1, max_length=500)]
DEFAULT_QUESTION = "Which answer is better?"
MAX_VOTES_PER_ITEM = 100


class Sampling(BaseModel):
    """How the two answers to a prompt are sampled; their seeds are drawn from the campaign's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(gt=0, le=2)
    """Above 0: one model would otherwise give the same answer twice."""
    max_tokens: int = Field(ge=1)
    """Tokens after which an answer is cut."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Share of probability that is sampled from."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, besides the prompt contract's end tokens."""

    def decoding(self, seed: int) -> Decoding:
        """The same with a seed, as one request carries it."""
        return Decoding(**self.model_dump(), seed=seed)


class GateCampaign(BaseModel):
    """People compare the candidate's and the baseline's answers of one evaluation; a gate counts their votes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    """What the gate's `ratings` and the commands call it."""
    purpose: Literal["gate"]
    """Its prompts decide, so they never become training data."""
    gate: str
    """The gate's file: names the suite and the public name whose champion is the baseline."""
    n_items: int | None = Field(default=None, ge=2)
    """At most this many of the cases whose two answers differ; None asks them all."""
    votes_per_item: int = Field(default=1, ge=1, le=MAX_VOTES_PER_ITEM)
    """How many people rate each item."""
    seed: int = 0
    """Changes which cases are taken and their order."""
    question: Question = DEFAULT_QUESTION
    """What people are asked."""


class TrainCampaign(BaseModel):
    """People choose between two sampled answers to prompts of the rate pool; `llmops feedback export` makes pairs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    """What the preferences and the commands call it."""
    purpose: Literal["train"]
    """May become training data; never counted by a gate."""
    dataset: Name
    """The dataset whose newest snapshot's rate pool gives the prompts."""
    models: tuple[str, ...] = Field(min_length=1, max_length=2)
    """Who answers: a public name (its champion), `base`, or an adapter; one name is sampled twice."""
    decoding: Sampling
    """How answers are sampled."""
    n_items: int = Field(ge=1)
    """Pairs to rate, spread over the groups; fewer when the pool does not give so many."""
    votes_per_item: int = Field(default=1, ge=1, le=MAX_VOTES_PER_ITEM)
    """How many people rate each item."""
    seed: int = 0
    """Changes which prompts are taken and what is sampled."""
    question: Question = DEFAULT_QUESTION
    """What people are asked."""

    @field_validator("models")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("a model is named twice; name it once to sample it twice")
        return names


class _Purpose(BaseModel):
    """The one setting that says how the rest of the file is read."""

    purpose: Literal["gate", "train"]


def load_campaign_file(path: Path) -> GateCampaign | TrainCampaign:
    """The campaign in a YAML file.

    Raises:
        ConfigError: it does not say what it must.
    """
    if load_yaml(path, _Purpose).purpose == "gate":
        return load_yaml(path, GateCampaign)
    return load_yaml(path, TrainCampaign)
