"""What raters are asked and told (`feedback_ui/rubric.yaml`): questions with a scale, tags, guidelines, looks of texts.

A campaign pins the rubric as it was when it was opened, in the store under kind `rubric`: its raters go on reading the
same words whatever becomes of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmops.errors import BadRequest
from llmops.schema import JsonDict, canonical_json
from llmops.settings import Workspace, load_yaml
from llmops.store import Store

FILE = "rubric.yaml"
FOLDER = "feedback_ui"
KIND, STORED = "rubric", "rubric.json"
SCALE_FROM, SCALE_TO = 1, 5

QuestionId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Words = Annotated[str, Field(min_length=1, max_length=300)]
Tag = Annotated[str, Field(min_length=1, max_length=40)]


class RubricQuestion(BaseModel):
    """One question about an answer, put with a scale of 1 to 5."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: QuestionId
    """What the export calls it."""
    text: Words
    """What raters read."""
    scale: tuple[Tag, Tag, Tag, Tag, Tag]
    """What 1, 2, 3, 4 and 5 mean."""
    required: bool = True
    """Whether an answer without it is refused."""
    tags: tuple[Tag, ...] = ()
    """Reasons that raters may give beside their number."""


class Rubric(BaseModel):
    """What raters are asked and told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    guidelines: str = Field(default="", max_length=20_000)
    """Markdown that stands in the page's panel of guidelines."""
    tags: tuple[Tag, ...] = ()
    """Reasons that raters may give with any answer: a choice, a score or a correction."""
    questions: tuple[RubricQuestion, ...] = ()
    """What is asked in a campaign of `kind: rate`, in this order."""
    prompts: Literal["auto", "markdown", "text"] = "auto"
    """How prompts are shown at first; `auto` draws as Markdown what is written as Markdown. Raters may switch."""
    answers: Literal["auto", "markdown", "text"] = "auto"
    """How answers are shown at first; two answers to one prompt are always shown alike."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what, names in (("question", [q.id for q in self.questions]), ("tag", self.all_tags)):
            twice = sorted({name for name in names if list(names).count(name) > 1})
            if twice:
                raise ValueError(f"{what} {twice[0]!r} is given twice; keep one")
        return self

    @property
    def all_tags(self) -> tuple[str, ...]:
        """The tags of the rubric and of its questions."""
        return (*self.tags, *(tag for question in self.questions for tag in question.tags))

    def require_tags(self, tags: Iterable[str]) -> tuple[str, ...]:
        """The tags without repetition, in the rubric's order.

        Raises:
            BadRequest: one of them is not the rubric's.
        """
        given = set(tags)
        strange = sorted(given - set(self.all_tags))
        if strange:
            raise BadRequest(f"rating: tag {strange[0]!r} is not in the rubric; reload the page")
        return tuple(tag for tag in self.all_tags if tag in given)

    def require_scores(self, scores: Mapping[str, int]) -> dict[str, int]:
        """The scores in the rubric's order.

        Raises:
            BadRequest: one is unknown or off the scale, or a required one is missing.
        """
        known = {question.id: question for question in self.questions}
        for name, value in scores.items():
            if name not in known:
                raise BadRequest(f"rating: question {name!r} is not in the rubric; reload the page")
            if not SCALE_FROM <= value <= SCALE_TO:
                raise BadRequest(
                    f"rating: {name}: {value} is not on the scale; give {SCALE_FROM} to {SCALE_TO}"
                )
        missing = [q.text for q in self.questions if q.required and q.id not in scores]
        if missing:
            raise BadRequest(f"rating: {missing[0]!r} is not answered; give {SCALE_FROM} to {SCALE_TO}")
        return {name: scores[name] for name in known if name in scores}

    def told(self) -> JsonDict:
        """What the page draws of it; the guidelines are drawn apart."""
        said: JsonDict = self.model_dump(mode="json", include={"tags", "questions"})
        return said


DEFAULT = Rubric(
    questions=(
        RubricQuestion(
            id="overall",
            text="How good is this answer?",
            scale=("useless", "poor", "fair", "good", "excellent"),
        ),
    )
)
"""What holds in a workspace without the file."""


def load_rubric(path: Path) -> Rubric:
    """The rubric in a YAML file.

    Raises:
        ConfigError: it does not say what it must.
    """
    return load_yaml(path, Rubric)


def rubric_of(workspace: Workspace) -> Rubric:
    """The workspace's rubric: `feedback_ui/rubric.yaml`, or `DEFAULT` where there is none.

    Raises:
        ConfigError: the file does not say what it must.
    """
    return rubric_in(workspace.root / FOLDER)


def rubric_in(folder: Path) -> Rubric:
    """The rubric that lies beside campaigns' files; `DEFAULT` where there is none.

    Raises:
        ConfigError: the file does not say what it must.
    """
    path = folder / FILE
    return load_rubric(path) if path.exists() else DEFAULT


def freeze_rubric(store: Store, rubric: Rubric) -> str:
    """Store a rubric for a campaign; returns the digest that the campaign names.

    Raises:
        StoreError: the disk did not take it.
    """
    return store.put_files(KIND, {STORED: canonical_json(rubric.model_dump(mode="json"))})


def frozen_rubric(store: Store, digest: str) -> Rubric:
    """The rubric that a campaign names.

    Raises:
        InvalidEvidence: it is gone from the store, or altered.
    """
    return Rubric.model_validate_json((store.verify(KIND, digest) / STORED).read_bytes())
