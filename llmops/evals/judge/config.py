"""Judges as their files spell them (`evals/judges/*.yaml`): who judges, what it is asked, how its answer is read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from llmops.engines.decoding import Decoding

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Endpoint(_Settings):
    """Who judges: a model behind an OpenAI endpoint, and how it is asked."""

    url: str | None = Field(default=None, pattern=r"^https?://[^@\s]+$")
    """The address that `/chat/completions` is put behind, as http://127.0.0.1:8001/v1; null asks this workspace's
    `llmops serve`."""
    model: str = Field(min_length=1)
    """The model's name there; never one of the systems that are judged."""
    api_key_env: str | None = None
    """Environment variable that holds the key; it is sent, and never written down."""
    output: Literal["auto", "json_schema", "text"] = "auto"
    """What the endpoint is asked for: JSON held to a schema, or plain text that should hold it; auto takes the first
    where the endpoint has it."""
    concurrency: int = Field(default=8, ge=1, le=1024)
    """Questions under way at once."""
    answer_s: float = Field(default=600.0, gt=0)
    """Seconds after which an answer is given up."""
    retry_s: float = Field(default=60.0, ge=0)
    """Seconds for which a busy or missing endpoint is asked again."""


class _Judge(_Settings):
    name: Name
    """Shown in sets of judgements and decisions."""
    endpoint: Endpoint
    """Who judges."""
    decoding: Decoding
    """How its answers are generated."""
    template: str | None = None
    """A jinja2 file that becomes the prompt; null takes the one that is shipped for the kind."""
    max_errored_frac: float = Field(default=0.05, ge=0, lt=1)
    """Share of cases that may end without a judgement before the set is no evidence."""


class PairwiseConfig(_Judge):
    """A judge that says which of two answers is better. Each pair is shown in both orders; disagreement is a tie."""

    kind: Literal["pairwise"]
    """Two systems are compared."""
    question: str = Field(min_length=1)
    """What makes an answer better, as people are asked it."""


class Question(_Settings):
    """One thing that a rubric asks of every answer."""

    id: Name
    """What its score is called."""
    text: str = Field(min_length=1)
    """What is asked."""
    scale: tuple[int, int]
    """Lowest and highest score, whole numbers."""
    pass_mark: int | None = None
    """Lowest score that passes; no share of passes is reported without one."""

    @model_validator(mode="after")
    def _ordered(self) -> Question:
        low, high = self.scale
        if low >= high:
            raise ValueError(f"scale {list(self.scale)} is none; give the lowest score first")
        if self.pass_mark is not None and not low < self.pass_mark <= high:
            raise ValueError(
                f"pass_mark {self.pass_mark} passes all or none; take one above {low}, up to {high}"
            )
        return self


class RubricConfig(_Judge):
    """A judge that scores each answer by itself, question by question."""

    kind: Literal["rubric"]
    """Answers are scored one by one."""
    questions: tuple[Question, ...] = Field(min_length=1)
    """What is asked of every answer."""
    repeats: int = Field(default=1, ge=1, le=16)
    """How often each answer is judged; repeat i is sampled with `decoding.seed` + i, from 2 on consistency is shown."""

    @model_validator(mode="after")
    def _differ(self) -> RubricConfig:
        ids = [question.id for question in self.questions]
        if len(set(ids)) != len(ids):
            raise ValueError(f"questions: {max(ids, key=ids.count)} stands there twice; name each once")
        return self


JudgeConfig = PairwiseConfig | RubricConfig


class JudgeFile(RootModel[Annotated[JudgeConfig, Field(discriminator="kind")]]):
    """A judge's file: `kind` says which settings it has."""
