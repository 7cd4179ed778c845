"""What a recipe trains on: one class a kind of source, told apart by `kind`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmops.train.recipe.settings import Settings


class DatasetSource(Settings):
    """Rows of a dataset that `llmops data build` has frozen."""

    kind: Literal["dataset"]
    """A dataset snapshot."""
    name: str
    """The dataset's name; its newest snapshot is used."""
    pool: Literal["train"] = "train"
    """The pool to train on; prompts of the other pools are kept for rating and for the gate."""


class FileSource(Settings):
    """Rows of JSONL files, taken as they are."""

    kind: Literal["files"]
    """JSONL files of conversations."""
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, relative to the recipe's own; a line is `{"messages": [...]}` or `{"prompt", "completion"}`."""


class PreferenceSource(Settings):
    """Pairs that people's ratings became, as `llmops feedback export` has frozen them."""

    kind: Literal["preferences"]
    """A preference snapshot."""
    name: str
    """The name of the campaign; its newest snapshot is used."""
