"""From what a recipe names as its data to the rows its method learns from, encoded and accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmops.chat import Tokenizer
from llmops.data.rows import labelled_of_line
from llmops.data.snapshot import stored_pool
from llmops.data.stored import StoredRows
from llmops.errors import InvalidEvidence
from llmops.ratings.preferences import load_pairs
from llmops.records import (
    DatasetSnapshot,
    Dropped,
    Labelled,
    Lineage,
    Preference,
    PreferenceSnapshot,
    PromptContract,
)
from llmops.registry.adapters import Registry
from llmops.schema import Progress
from llmops.train.frozen import (
    TRAIN_FILE,
    Asked,
    Frozen,
    freeze_judged,
    freeze_preferences,
    read_judged,
)
from llmops.train.gate import Gate
from llmops.train.pairs import encode_all_judged, encode_pairs, judged_of_pairs, read_preferences
from llmops.train.prompts import prompts_of_rows
from llmops.train.recipe import DatasetSource, Distill, EndpointTeacher, Grpo, Kto, PreferenceSource, Recipe
from llmops.train.rows import Examples, Source, encode_rows, read_source
from llmops.train.teacher import answered

Pairs = tuple[PreferenceSnapshot, Sequence[Preference], Sequence[Dropped]]
"""A preference snapshot, its pairs, and those that were dropped."""


def read_examples(
    recipe: Recipe,
    folder: Path,
    registry: Registry,
    encoder: tuple[Tokenizer, PromptContract],
    gate: Gate,
) -> Examples[Any]:
    """The rows of a recipe in the form its method learns from: `Example`, `Pair`, `Judged` or `Asked`.

    Args:
        recipe: names data and method, which fit each other.
        folder: what the paths of files are relative to.
        registry: where snapshots lie.
        encoder: tokenizer and prompt contract.
        gate: checks the rows when they are read; its progress is told how far reading and encoding are.

    Raises:
        BadRequest: the dataset or the preferences are not there.
        DataError: the data cannot be read, holds what the method does not learn from, or is refused by the gate.
        LlmopsError: hub, database or endpoint cannot be reached, or the disk did not take it.
        CouldNotRun: a teacher's endpoint does not answer.
        InvalidEvidence: a snapshot was altered.
    """
    asked = Asked(recipe.data, recipe.name, folder, gate)
    if isinstance(recipe.data, PreferenceSource):
        return encode_found(read_preferences(recipe.data, registry, gate), recipe, encoder, gate.progress)
    if "conversations" in recipe.method.learns_from:
        source = read_source(recipe.data, recipe.name, folder, registry, gate)
        if isinstance(recipe.method, Distill) and isinstance(recipe.method.teacher, EndpointTeacher):
            source = answered(source, recipe, recipe.method.teacher, registry, gate.progress)
        return encode_found(source, recipe, encoder, gate.progress)
    if "judged" in recipe.method.learns_from and isinstance(recipe.data, DatasetSource):
        return encode_found(read_judged(recipe.data.name, registry, gate), recipe, encoder, gate.progress)
    if "judged" in recipe.method.learns_from:
        return encode_found(freeze_judged(asked, registry), recipe, encoder, gate.progress)
    frozen = freeze_preferences(asked, registry)
    return encode_found((frozen.snapshot, frozen.rows, frozen.dropped), recipe, encoder, gate.progress)


def encode_found(
    found: Source | Frozen[DatasetSnapshot, Labelled] | Pairs,
    recipe: Recipe,
    encoder: tuple[Tokenizer, PromptContract],
    progress: Progress,
) -> Examples[Any]:
    """Conversations, judged answers or preferences that were read, in the form the recipe's method learns from."""
    if isinstance(found, Source):
        examples = encode_rows(found, recipe, *encoder, progress)
        if isinstance(recipe.method, Grpo):
            return prompts_of_rows(examples, found.rows, recipe, encoder)
        return examples
    if isinstance(found, Frozen):
        return encode_all_judged(found, recipe, *encoder)
    pairs = encode_pairs(found, recipe, *encoder)
    return judged_of_pairs(pairs) if isinstance(recipe.method, Kto) else pairs


def read_again(lineage: Lineage, recipe: Recipe, registry: Registry) -> Any:
    """What `encode_found` takes, read from the snapshot that a lineage names: the same rows as were trained on.

    Raises:
        InvalidEvidence: the snapshot is gone or altered, or the lineage names none.
    """
    if lineage.preferences:
        pairs = registry.store.get_record(PreferenceSnapshot, lineage.preferences)
        return pairs, load_pairs(registry.store, pairs), ()
    if lineage.dataset is None:
        raise InvalidEvidence("lineage: names no rows; the record is damaged")
    snapshot = registry.store.get_record(DatasetSnapshot, lineage.dataset)
    if "conversations" in recipe.method.learns_from:
        pool = getattr(recipe.data, "pool", "train")
        return Source(snapshot, stored_pool(registry.store, snapshot, pool), ())
    path = registry.store.verify("dataset", snapshot.artifact) / TRAIN_FILE
    return Frozen(snapshot, StoredRows(path, labelled_of_line), ())
