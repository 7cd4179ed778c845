"""The order in which rows are trained on, fixed before training starts: equal recipes see equal batches."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from llmops.train.packing import pack
from llmops.train.recipe import Batch, Grpo, Recipe

PASSES_IN_WINDOW = 16


def pack_tokens_of(recipe: Recipe) -> int:
    """Tokens of a packed row."""
    return recipe.batch.pack_tokens or recipe.max_tokens


def n_sequences(recipe: Recipe, lengths: Sequence[int]) -> int:
    """Rows in which all examples are read once, by their lengths in tokens: one each, or as many as they pack into."""
    return len(pack(lengths, pack_tokens_of(recipe))) if recipe.batch.packing else len(lengths)


def n_steps_of(recipe: Recipe, n_rows: int) -> int:
    """Optimizer steps a recipe asks for over `n_rows` rows (`n_sequences`); a broken last step counts as one."""
    if recipe.n_steps is not None:
        return recipe.n_steps
    copies = (
        recipe.method.n_answers if isinstance(recipe.method, Grpo) else 1
    )  # a prompt is as many rows of a step
    return math.ceil((recipe.n_epochs or 0) * n_rows * copies / recipe.step_batch.n_rows)


def training_order(lengths: Sequence[int], n_steps: int, batch: Batch, seed: int) -> list[int]:
    """Row numbers in training order, `n_steps * batch.n_rows` of them; every row once before any row twice.

    With `group_by_length`, rows are sorted by length within windows of 16 passes and the passes of a window are
    shuffled again, so that the length says little about when in the run a row is seen. (A sort over the whole run,
    which is what transformers' LengthGroupedSampler comes to with few batches, would be a curriculum.)

    Args:
        lengths: tokens of each row.
        n_steps: optimizer steps.
        batch: rows per pass and passes per step.
        seed: fixes both shuffles.
    """
    draw = random.Random(seed)
    order: list[int] = []
    while len(order) < n_steps * batch.n_rows:
        rows = list(range(len(lengths)))
        draw.shuffle(rows)
        order += rows
    order = order[: n_steps * batch.n_rows]
    if not batch.group_by_length:
        return order
    window = PASSES_IN_WINDOW * batch.per_device
    grouped: list[int] = []
    for start in range(0, len(order), window):
        rows = sorted(order[start : start + window], key=lambda i: lengths[i])
        passes = [rows[i : i + batch.per_device] for i in range(0, len(rows), batch.per_device)]
        draw.shuffle(passes)
        grouped += [row for one in passes for row in one]
    return grouped


def padding_frac(lengths: Sequence[int], order: Sequence[int], per_device: int) -> float:
    """Fraction of the computed tokens that is padding, in [0, 1)."""
    batches = [[lengths[i] for i in order[s : s + per_device]] for s in range(0, len(order), per_device)]
    computed = sum(max(batch) * len(batch) for batch in batches)
    return 1 - sum(map(sum, batches)) / computed
