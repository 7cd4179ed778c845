"""The shapes of a run's passes, read off its rows in the very order in which they will be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from llmops.train.order import n_sequences, n_steps_of, pack_tokens_of, training_order
from llmops.train.packing import packed_order
from llmops.train.recipe import Distill, EndpointTeacher, Recipe, Sft
from llmops.train.rows import Example, Judged, Pair, token_lengths


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


def passes_of(recipe: Recipe, rows: Sequence[Any], shared: bool = True) -> list[Pass]:
    """Every pass of a run, in order.

    Args:
        recipe: says how rows come together.
        rows: the rows that are trained on: examples, pairs or judged answers.
        shared: whether both answers of a pair are read in one row, behind their prompt.
    """
    return [_pass([[rows[i] for i in row] for row in one], shared) for one in _read(recipe, rows)]


def parts_of(recipe: Recipe, rows: Sequence[Any], device: str, shared: bool = True) -> list[Pass]:
    """What is computed at once, in order: passes, or on a CPU the small parts in which method sft takes each.

    Args:
        recipe: says how rows come together.
        rows: the rows that are trained on.
        device: cpu or cuda.
        shared: as for `passes_of`.
    """
    if not _takes_small_parts(recipe, device):
        return passes_of(recipe, rows, shared)
    from llmops.train.loop import TOKENS_AT_ONCE, grouped

    return [
        _pass([[rows[one[n][0]]] for n in group], shared)
        for one in _read(recipe, rows)
        for group in grouped([rows[i].n_tokens for (i,) in one], TOKENS_AT_ONCE)
    ]


def _takes_small_parts(recipe: Recipe, device: str) -> bool:
    method = recipe.method
    learns_answers = isinstance(method, Sft) or (
        isinstance(method, Distill) and isinstance(method.teacher, EndpointTeacher)
    )
    return learns_answers and device == "cpu" and recipe.launch.processes == 1 and not recipe.batch.packing


def _read(recipe: Recipe, rows: Sequence[Any]) -> list[list[list[int]]]:
    """The rows of each pass; of each the numbers of the examples in it."""
    lengths, batch = token_lengths(rows), recipe.step_batch
    n_steps = n_steps_of(recipe, n_sequences(recipe, lengths))
    if batch.packing:
        read = packed_order(lengths, n_steps * batch.n_rows, pack_tokens_of(recipe), recipe.seed)
    else:
        read = [[i] for i in training_order(lengths, n_steps, batch, recipe.seed)]
    size = batch.per_device
    return [read[at : at + size] for at in range(0, len(read), size)]


def _pass(read: Sequence[Sequence[Any]], shared: bool) -> Pass:
    sides = 2 if isinstance(read[0][0], Pair) and not shared else 1
    return Pass(
        n_sequences=sides * len(read),
        n_tokens=max(sum(_n_tokens(row, shared) for row in one) for one in read),
        n_labels=max(1, sum(_n_labels(row) for one in read for row in one)),
    )


def _n_tokens(row: Any, shared: bool) -> int:
    if isinstance(row, Pair) and shared:
        return sum(row.lengths) - len(row.prompt_ids)
    return int(row.n_tokens)


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
