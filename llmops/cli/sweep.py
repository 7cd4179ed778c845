"""`llmops sweep`: a search over a recipe's settings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmops.cli.output import as_json, progress, table
from llmops.schema import short
from llmops.settings import find_workspace

if TYPE_CHECKING:
    from llmops.train.sweep import Search


def sweep(
    recipe: Annotated[Path, typer.Argument(help="A recipe with a `sweep` block: ranges, metric, n_trials.")],
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Go on until so many trials have a figure, not the recipe's number."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the trials as JSON.")] = False,
) -> None:
    """Search for the settings that give the best figure; run it again to go on with a search that was ended."""
    from llmops.train.sweep import sweep as search

    with progress("sweep") as report:
        found = search(recipe, find_workspace(), trials, report)
    if json:
        as_json(asdict(found))
        return
    _print(recipe, found)


def _print(recipe: Path, found: Search) -> None:
    names = list(found.best.settings)
    rows = [
        (
            trial.number,
            *(trial.settings[name] for name in names),
            "-" if trial.figure is None else f"{trial.figure:.4f}",
            short(trial.adapter) if trial.adapter else trial.error,
            "best" if trial == found.best else "",
        )
        for trial in found.trials
    ]
    typer.echo(table(("trial", *names, "figure", "adapter", ""), rows))
    typer.echo(f"best     llmops finetune {recipe} {' '.join(found.best.words)}")
