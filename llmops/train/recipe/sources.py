"""What a recipe trains on: one class a kind of source, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmops.data.sources.config import FilesSource as FileSource
from llmops.data.sources.config import HttpSource, HubSource, SqlSource
from llmops.train.recipe.settings import Settings

__all__ = [
    "AnySource",
    "DatasetSource",
    "FileSource",
    "HttpSource",
    "HubSource",
    "MixturePart",
    "MixtureSource",
    "PreferenceSource",
    "SqlSource",
]


class DatasetSource(Settings):
    """Rows of a dataset that `llmops data build` has frozen."""

    kind: Literal["dataset"]
    """A dataset snapshot."""
    name: str
    """The dataset's name; its newest snapshot is used."""
    pool: Literal["train"] = "train"
    """The pool to train on; prompts of the other pools are kept for rating and for the gate."""


class PreferenceSource(Settings):
    """Pairs that people's ratings became, as `llmops feedback export` has frozen them."""

    kind: Literal["preferences"]
    """A preference snapshot."""
    name: str
    """The name of the campaign; its newest snapshot is used."""


PartSource = DatasetSource | PreferenceSource | FileSource | HubSource | SqlSource | HttpSource


class MixturePart(Settings):
    """One source of a mixture."""

    source: Annotated[PartSource, Field(discriminator="kind")]
    """Where its rows come from."""
    weight: float = Field(1.0, gt=0, le=1000)
    """How often each of its rows comes in one pass over the mixture: 1 once, 3 three times; 0.25 a quarter of the rows,
    drawn by the mixture's seed; 1.5 all of them once and half of them twice. It is no share of the mixture: shares
    follow from the numbers of rows."""


class MixtureSource(Settings):
    """Several sources read as one; all must hold what the method learns from."""

    kind: Literal["mixture"]
    """A mixture of sources."""
    parts: tuple[MixturePart, ...] = Field(min_length=1)
    """The sources, with their weights."""
    seed: int = 0
    """Changes which rows a weight that is no whole number draws."""


AnySource = PartSource | MixtureSource
"""All kinds; which of them fit is for the method to say."""


def parts_of(source: AnySource) -> tuple[MixturePart, ...]:
    """The sources of a mixture; any other source is its only part, every row once."""
    return source.parts if isinstance(source, MixtureSource) else (MixturePart(source=source),)
