"""What a campaign's YAML file says (`feedback_ui/*.yaml`). Paths in it are relative to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from llmops.engines.decoding import Decoding
from llmops.records import CampaignKind
from llmops.settings import load_yaml

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Question = Annotated[str, Field(min_length=1, max_length=500)]
DEFAULT_QUESTION = "Which answer is better?"
MAX_VOTES_PER_ITEM = 100


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sampling(_Settings):
    """How the two answers to a prompt are sampled; their seeds are drawn from the campaign's."""

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


class Overlap(_Settings):
    """Some items get more votes than the others, so that agreement can be told without asking everything twice."""

    frac: float = Field(gt=0, le=1)
    """Share of the items, spread evenly over their order."""
    votes: int = Field(default=2, ge=2, le=MAX_VOTES_PER_ITEM)
    """How many people rate each of them."""


class Gold(_Settings):
    """Items whose right answer is known; they show who reads, and are never evidence."""

    file: str
    """JSONL, a line an item: `prompt` or `messages`; `answers` (two) or `answer`; `known`: first, second, tie or
    both_bad; edited or kept; or scores by question."""
    every: int = Field(default=10, ge=2)
    """One of so many items that a rater gets is a gold one, at a place nobody can foresee."""


class _Campaign(_Settings):
    name: Name
    """What the commands, the gate's `ratings` and the exported data call it."""
    votes_per_item: int = Field(default=1, ge=1, le=MAX_VOTES_PER_ITEM)
    """How many people rate each item."""
    overlap: Overlap | None = None
    """Items that get more votes than that."""
    gold: Gold | None = None
    """Items whose answer is known."""
    repeats_frac: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the items that their raters are asked once more, sides swapped, after some others; never evidence."""
    seed: int = 0
    """Changes which prompts are taken, their order, and what is sampled."""
    question: Question = DEFAULT_QUESTION
    """What people are asked."""

    @model_validator(mode="after")
    def _more_votes(self) -> _Campaign:
        if self.overlap is not None and self.overlap.votes <= self.votes_per_item:
            raise ValueError(
                f"overlap.votes: {self.overlap.votes} is no more than votes_per_item ({self.votes_per_item})"
            )
        return self


class GateCampaign(_Campaign):
    """People compare the candidate's and the baseline's answers of one evaluation; a gate counts their votes."""

    purpose: Literal["gate"]
    """Its prompts decide, so they never become training data."""
    gate: str
    """The gate's file: names the suite and the public name whose champion is the baseline."""
    n_items: int | None = Field(default=None, ge=2)
    """At most this many of the cases whose two answers differ; None asks them all."""


class _TrainCampaign(_Campaign):
    purpose: Literal["train"]
    """May become training data; never counted by a gate."""
    kind: CampaignKind = "compare"
    """What people do: compare two answers, rate one by the rubric, or edit one."""


class _Models(_TrainCampaign):
    models: tuple[str, ...] = Field(min_length=1, max_length=2)
    """Who answers: a public name (its champion), `base`, or an adapter; one name is sampled twice."""
    decoding: Sampling
    """How answers are sampled."""

    @field_validator("models")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("a model is named twice; name it once to sample it twice")
        return names

    @model_validator(mode="after")
    def _one_to_rate(self) -> _Models:
        if self.kind != "compare" and len(self.models) > 1:
            raise ValueError(f"models: kind {self.kind} shows one answer; name one model")
        return self


class TrainCampaign(_Models):
    """People judge sampled answers to prompts of the rate pool; `llmops feedback export` makes training data of it."""

    source: Literal["samples"] = "samples"
    """Where the answers come from."""
    dataset: Name
    """The dataset whose newest snapshot's rate pool gives the prompts."""
    n_items: int = Field(ge=1)
    """Items to rate, spread over the groups; fewer when the pool does not give so many."""


class TypedCampaign(_Models):
    """Raters type prompts, which both models answer at once."""

    source: Literal["typed"]
    """Where the answers come from."""

    @model_validator(mode="after")
    def _compares(self) -> TypedCampaign:
        if self.kind != "compare":
            raise ValueError("kind: typed prompts are compared")
        if self.gold is not None or self.repeats_frac or self.overlap is not None:
            raise ValueError("gold, repeats_frac, overlap: a typed prompt is its rater's own; leave them out")
        return self


class CaptureCampaign(_TrainCampaign):
    """People judge answers that were served: pairs of two models or arms, or single ones."""

    source: Literal["captures", "feedback"]
    """`captures`: whatever was captured; `feedback`: what users said something of."""
    asked: Name | None = None
    """Only requests for this public name."""
    since: str | None = None
    """Only answers from this time on (RFC 3339)."""
    systems: tuple[str, str] | None = None
    """Only pairs of these two: public names, adapters or `base`."""
    said: Literal["bad", "good", "any"] = "bad"
    """Of `feedback`: answers that users called bad, good, or said anything of."""
    n_items: int = Field(ge=1)
    """At most this many items, the newest."""

    @model_validator(mode="after")
    def _fits(self) -> CaptureCampaign:
        if self.systems is not None and self.kind != "compare":
            raise ValueError(f"systems: kind {self.kind} shows one answer; leave them out")
        if self.source == "feedback" and self.kind == "compare":
            raise ValueError("source feedback: what users said is of one answer; set kind to rate or edit")
        return self


AnyCampaign = GateCampaign | TrainCampaign | TypedCampaign | CaptureCampaign
_BY_SOURCE: dict[str, type[TrainCampaign | TypedCampaign | CaptureCampaign]] = {
    "samples": TrainCampaign,
    "typed": TypedCampaign,
    "captures": CaptureCampaign,
    "feedback": CaptureCampaign,
}


class _Purpose(BaseModel):
    """The settings that say how the rest of the file is read."""

    purpose: Literal["gate", "train"]
    source: Literal["samples", "typed", "captures", "feedback"] = "samples"


def load_campaign_file(path: Path) -> AnyCampaign:
    """The campaign in a YAML file.

    Raises:
        ConfigError: it does not say what it must.
    """
    said = load_yaml(path, _Purpose)
    if said.purpose == "gate":
        return load_yaml(path, GateCampaign)
    return load_yaml(path, _BY_SOURCE[said.source])
