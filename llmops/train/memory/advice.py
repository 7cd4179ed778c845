"""What to change in a recipe so that it needs less memory: each change estimated on the recipe itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from llmops.train.memory.estimate import Estimate, Scene, estimate
from llmops.train.recipe import Kto, Recipe


@dataclass(frozen=True)
class Change:
    """A change of settings, in words as they stand in a recipe, and the bytes the run needs with it."""

    words: str
    total_bytes: int


def changes(scene: Scene, found: Estimate, available_bytes: int) -> list[Change]:
    """Changes that save memory, those that make the run fit first, then by what they save.

    Args:
        scene: the run that does not fit.
        found: its estimate.
        available_bytes: what it shall fit into.
    """
    tried = [
        Change(words, estimate(replace(scene, recipe=recipe)).total_bytes)
        for words, recipe in _less(scene, found)
    ]
    saving = [change for change in tried if change.total_bytes < found.total_bytes]
    return sorted(saving, key=lambda change: (change.total_bytes > available_bytes, change.total_bytes))


def _less(scene: Scene, found: Estimate) -> Iterator[tuple[str, Recipe]]:
    """Recipes that need less, cheapest in time first."""
    recipe = scene.recipe
    if found.stage == "train":
        if not recipe.gradient_checkpointing:
            yield "gradient_checkpointing: true", _with(recipe, gradient_checkpointing=True)
        fewer = recipe.batch.per_device // 2
        if fewer >= (2 if isinstance(recipe.method, Kto) else 1):
            more = recipe.batch.accumulation * recipe.batch.per_device // fewer
            batch = recipe.batch.model_copy(update={"per_device": fewer, "accumulation": more})
            yield f"batch.per_device: {fewer} with batch.accumulation: {more}", _with(recipe, batch=batch)
        if fewer >= 2:
            more = recipe.batch.accumulation * recipe.batch.per_device
            if not isinstance(recipe.method, Kto):
                batch = recipe.batch.model_copy(update={"per_device": 1, "accumulation": more})
                yield f"batch.per_device: 1 with batch.accumulation: {more}", _with(recipe, batch=batch)
    if recipe.precision == "fp32" and found.stage != "probe":
        yield "precision: bf16", _with(recipe, precision="bf16")
    if recipe.quantization == "none" and recipe.precision == "bf16" and found.stage != "probe":
        yield "quantization: nf4", _with(recipe, quantization="nf4")


def _with(recipe: Recipe, **update: Any) -> Recipe:
    return recipe.model_copy(update=update)
