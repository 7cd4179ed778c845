"""What the rows come to: every one accounted for, how many tokens are trained on, and how long the run is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from llmops.schema import short
from llmops.train.memory.passes import Pass
from llmops.train.recipe import Recipe
from llmops.train.rows import Examples
from llmops.train.sanity import Finding


def row_findings(examples: Examples[Any], recipe: Recipe) -> list[Finding]:
    """The account of a recipe's rows, dropped ones by reason."""
    counts = ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in examples.n_rows.items())
    snapshot = examples.snapshot
    found = [Finding("rows", "ok", f"{snapshot.name}@{short(snapshot.digest())}: {counts}")]
    reasons = Counter(row.kind for row in examples.dropped)
    if reasons:
        said = ", ".join(f"{kind} {n:,}" for kind, n in reasons.most_common())
        frac = len(examples.dropped) / examples.n_read
        budget = f"{frac:.2%} of the rows, the budget is {recipe.drop_budget_frac:.2%}"
        found.append(Finding("dropped", "ok", f"{said}: {budget}"))
    return found


def pass_findings(passes: Sequence[Pass], recipe: Recipe, lengths: Sequence[int]) -> list[Finding]:
    """How many steps and tokens a run has, and what part of its tokens is scored."""
    n_positions = sum(one.n_positions for one in passes)
    n_labels = sum(one.n_labels for one in passes)
    n_steps = -(-len(passes) // recipe.step_batch.accumulation)
    long = f"rows of {min(lengths):,} to {max(lengths):,} tokens"
    scored = f"{n_labels / n_positions:.1%} of {n_positions:,} computed tokens are trained on"
    return [Finding("length", "ok", f"{n_steps:,} steps, {len(passes):,} passes; {long}; {scored}")]
