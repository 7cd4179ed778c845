"""From what a recipe names as its data to the rows its method learns from, encoded and accounted for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llmops.chat import Tokenizer
from llmops.records import PromptContract
from llmops.registry.adapters import Registry
from llmops.schema import Progress
from llmops.train.frozen import Asked, freeze_judged, freeze_preferences
from llmops.train.pairs import encode_all_judged, encode_pairs, judged_of_pairs, read_preferences
from llmops.train.prompts import prompts_of_rows
from llmops.train.recipe import Distill, EndpointTeacher, Grpo, Kto, PreferenceSource, Recipe
from llmops.train.rows import Examples, encode_rows, read_source
from llmops.train.teacher import answered


def read_examples(
    recipe: Recipe,
    folder: Path,
    registry: Registry,
    encoder: tuple[Tokenizer, PromptContract],
    progress: Progress,
) -> Examples[Any]:
    """The rows of a recipe in the form its method learns from: `Example`, `Pair`, `Judged` or `Asked`.

    Args:
        recipe: names data and method, which fit each other.
        folder: what the paths of files are relative to.
        registry: where snapshots lie.
        encoder: tokenizer and prompt contract.
        progress: told how far encoding is.

    Raises:
        BadRequest: the dataset or the preferences are not there.
        DataError: the data cannot be read, or holds what the method does not learn from.
        LlmopsError: hub, database or endpoint cannot be reached, or the disk did not take it.
        CouldNotRun: a teacher's endpoint does not answer.
        InvalidEvidence: a snapshot was altered.
    """
    asked = Asked(recipe.data, recipe.name, folder, progress)
    if isinstance(recipe.data, PreferenceSource):
        pairs = encode_pairs(read_preferences(recipe.data, registry), recipe, *encoder)
        return judged_of_pairs(pairs) if isinstance(recipe.method, Kto) else pairs
    if "conversations" in recipe.method.learns_from:
        source = read_source(recipe.data, recipe.name, folder, registry, progress)
        if isinstance(recipe.method, Distill) and isinstance(recipe.method.teacher, EndpointTeacher):
            source = answered(source, recipe, recipe.method.teacher, registry, progress)
        examples = encode_rows(source, recipe, *encoder, progress)
        if isinstance(recipe.method, Grpo):
            return prompts_of_rows(examples, source.rows, recipe, encoder)
        return examples
    if "judged" in recipe.method.learns_from:
        return encode_all_judged(freeze_judged(asked, registry), recipe, *encoder)
    frozen = freeze_preferences(asked, registry)
    pairs = encode_pairs((frozen.snapshot, frozen.rows), recipe, *encoder)
    return replace(pairs, dropped=frozen.dropped + pairs.dropped)
