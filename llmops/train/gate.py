"""The quality gate of a recipe's rows: they are checked when they were read and before they are frozen or encoded.

Writes `quality.json`, the report, into the run's folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llmops.data.quality import Assessed, Quality, Surroundings, assess, require_clean
from llmops.data.quality.length import CountTokens
from llmops.data.quality.suites import suite_reader
from llmops.data.quality.texts import T
from llmops.registry.adapters import Registry
from llmops.schema import Progress
from llmops.settings import Workspace
from llmops.train.recipe import Recipe

QUALITY_FILE = "quality.json"


@dataclass(frozen=True)
class Gate:
    """The checks that rows pass through; `where` names them in messages, `folder` gets the report."""

    settings: Quality
    where: str = "rows"
    around: Surroundings = field(default_factory=Surroundings)
    folder: Path | None = None

    @property
    def progress(self) -> Progress:
        """Told what is being done with the rows."""
        return self.around.progress

    def check(self, rows: Sequence[T]) -> Assessed[T]:
        """The rows that may be learnt from, and those that a check has dropped.

        Raises:
            ConfigError: a check needs what is not installed.
            DataError: a check that is set to refuse has found rows, or could not be made.
            InvalidEvidence: a suite's data was altered.
        """
        assessed = assess(rows, self.settings, self.where, self.around)
        if self.folder is not None:
            text = json.dumps(assessed.report.to_dict(), indent=1, ensure_ascii=False)
            (self.folder / QUALITY_FILE).write_text(text + "\n", encoding="utf-8")
        require_clean(assessed.report, self.where)
        return assessed


UNCHECKED = Gate(Quality().only())
"""Lets every row through."""


def gate_of(
    recipe: Recipe, workspace: Workspace, tokenizer: Any, folder: Path | None, progress: Progress
) -> Gate:
    """The gate of a recipe, which knows the workspace's suites.

    Args:
        recipe: says what is checked.
        workspace: where suites and their data are.
        tokenizer: counts tokens where they are limited; None where none is known.
        folder: gets the report; None writes none.
        progress: told what is being checked.
    """
    registry = Registry.of(workspace)
    cases = partial(suite_reader(workspace.suites, registry.store, registry.ledger), {})
    count = counter(tokenizer) if tokenizer is not None and recipe.quality.length.limits_tokens else None
    return Gate(recipe.quality, f"data of {recipe.name}", Surroundings(cases, count, progress), folder)


def counter(tokenizer: Any) -> CountTokens:
    """Counts the tokens of texts, without special ones."""

    def count(texts: Sequence[str]) -> list[int]:
        encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
        return [len(ids) for ids in encoded["input_ids"]]

    return count
