"""The shapes of a run's passes, read off its rows in the very order in which they will be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from llmops.train.order import n_sequences, n_steps_of, pack_tokens_of, training_order
from llmops.train.packing import packed_order
from llmops.train.recipe import Recipe
from llmops.train.rows import Example, Judged, Pair


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass: B sequences padded to T tokens, of which N positions in all are scored."""

    n_sequences: int
    n_tokens: int
    n_labels: int

    @property
    def n_positions(self) -> int:
        """Computed tokens, padding among them."""
        return self.n_sequences * self.n_tokens


def passes_of(recipe: Recipe, rows: Sequence[Any]) -> list[Pass]:
    """Every pass of a run, in order.

    Args:
        recipe: says how rows come together.
        rows: the rows that are trained on: examples, pairs or judged answers.
    """
    lengths = [row.n_tokens for row in rows]
    n_steps = n_steps_of(recipe, n_sequences(recipe, lengths))
    if recipe.batch.packing:
        n_packed = n_steps * recipe.batch.n_rows
        read = packed_order(lengths, n_packed, pack_tokens_of(recipe), recipe.seed)
    else:
        read = [[i] for i in training_order(lengths, n_steps, recipe.batch, recipe.seed)]
    size = recipe.batch.per_device
    return [
        _pass([[rows[i] for i in one] for one in read[at : at + size]]) for at in range(0, len(read), size)
    ]


def _pass(read: Sequence[Sequence[Any]]) -> Pass:
    sides = 2 if isinstance(read[0][0], Pair) else 1
    return Pass(
        n_sequences=sides * len(read),
        n_tokens=max(sum(row.n_tokens for row in one) for one in read),
        n_labels=max(1, sum(_n_labels(row) for one in read for row in one)),
    )


def _n_labels(row: Any) -> int:
    """Positions of a row at which the next token is scored."""
    if isinstance(row, Example):
        return row.encoded.n_supervised
    if isinstance(row, Pair):
        return len(row.chosen_ids) + len(row.rejected_ids)
    if isinstance(row, Judged):
        return len(row.answer_ids)
    return int(row.n_tokens)


def largest(passes: Sequence[Pass]) -> Pass:
    """The pass that needs most: as many positions as any has, and as many labels as any of those within a tenth of it.

    Positions come first because every layer keeps something of each; labels are only scored once.
    """
    top = max(passes, key=lambda one: (one.n_positions, one.n_labels))
    near = [one for one in passes if one.n_positions >= 0.9 * top.n_positions]
    return Pass(top.n_sequences, top.n_tokens, max(one.n_labels for one in near))


def usual(passes: Sequence[Pass]) -> Pass:
    """A pass of middling size: the allocator has served it before the largest comes, and holds its pieces."""
    middle = median(one.n_positions for one in passes)
    return min(passes, key=lambda one: abs(one.n_positions - middle))
