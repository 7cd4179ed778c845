"""The account of a run's rows: which were dropped and why, their text to be mended, and whether they are too many.

`dropped.jsonl` says source and reason and is kept with the adapter's lineage; `quarantine.jsonl` has the rows' own text
too and stays in the run's folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmops.data.quarantine import DROPPED_FILE, QUARANTINE_FILE, dropped_lines, quarantine_lines
from llmops.errors import ConfigError, DataError
from llmops.records import Dropped
from llmops.train.recipe import Kto, Recipe
from llmops.train.rows import Examples

N_NAMED = 3  # dropped rows that an error message names; the others are in the run's list


def write_account(dropped: Iterable[Dropped], folder: Path) -> Path:
    """Write both lists into a run's folder, the one with texts only if there is a row in it; returns where to look."""
    rows = tuple(dropped)
    (folder / DROPPED_FILE).write_bytes(dropped_lines(rows))
    if not rows:
        return folder / DROPPED_FILE
    (folder / QUARANTINE_FILE).write_bytes(quarantine_lines(rows))
    return folder / QUARANTINE_FILE


def require_within_budget(examples: Examples[Any], recipe: Recipe, listing: Path) -> None:
    """Refuse a run that would lose more rows than the recipe allows.

    Args:
        examples: the rows as they were encoded.
        recipe: names the budget.
        listing: file that lists every dropped row, for the message.

    Raises:
        DataError: names the first dropped rows by file and line, and all by reason; or no row is left to train on.
    """
    n_dropped, n_all = len(examples.dropped), examples.n_read
    if n_all == 0:
        raise DataError(f"data of {recipe.name}: has no rows; give files or a dataset with at least one")
    if examples.train and n_dropped <= recipe.drop_budget_frac * n_all:
        return
    first = "; ".join(f"{d.source}: {d.reason}" for d in examples.dropped[:N_NAMED])
    counts = ", ".join(f"{kind} {n:,}" for kind, n in Counter(d.kind for d in examples.dropped).most_common())
    raise DataError(
        f"{first}{'; ...' if n_dropped > N_NAMED else ''}: {n_dropped:,} of {n_all:,} rows would be dropped "
        f"({n_dropped / n_all:.2%}: {counts}), the budget is {recipe.drop_budget_frac:.2%}; all are listed in "
        f"{listing}; mend them, or raise drop_budget_frac or max_tokens"
    )


def require_both_kinds(examples: Examples[Any], recipe: Recipe) -> None:
    """Refuse answers for kto that are all good or all bad: there would be nothing to tell apart.

    Raises:
        DataError: says which kind is missing.
    """
    if not isinstance(recipe.method, Kto):
        return
    kinds = {row.good for row in examples.train}
    if len(kinds) == 1:
        all_are, lacking = ("good", "bad") if kinds == {True} else ("bad", "good")
        raise DataError(
            f"data of {recipe.name}: all {len(examples.train):,} answers are {all_are} ones; kto learns to tell both "
            f"kinds apart, add {lacking} answers"
        )


def require_looks(examples: Examples[Any], recipe: Recipe) -> None:
    """Refuse early stopping where no row is held out that it could look at.

    Raises:
        ConfigError: says what to raise.
    """
    if recipe.early_stopping and not examples.held_out:
        raise ConfigError(
            f"recipe {recipe.name}: early_stopping: no row is held out (held_out_frac {recipe.held_out_frac} of "
            f"{len(examples.train):,} rows holds no whole group); raise held_out_frac"
        )
