"""`llmops verify-resume` and `llmops reproduce`: whether training comes to the same adapter again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llmops.cli.output import as_json, progress
from llmops.errors import EXIT_INVALID
from llmops.settings import find_workspace


def verify_resume(
    recipe: Annotated[Path, typer.Argument(help="The recipe whose runs shall resume exactly.")],
    steps: Annotated[int, typer.Option(min=3, help="Steps to train, twice.")] = 12,
    json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Train some steps unbroken, then broken by kill -9 and resumed; exit 0 if the weights are equal, 4 if not."""
    from llmops.train.verify_resume import verify_resume as verify

    with progress("verify-resume") as report:
        verdict = verify(recipe, find_workspace(), steps, report)
    if json:
        as_json(asdict(verdict) | {"exact": verdict.exact})
    else:
        typer.echo(f"unbroken   {verdict.n_steps} steps, weights {verdict.unbroken}")
        typer.echo(
            f"resumed    killed at step {verdict.killed_at}, gone on with behind step {verdict.resumed_from}, "
            f"weights {verdict.resumed}"
        )
        typer.echo("EXACT" if verdict.exact else f"DIFFERENT: {verdict.differs}")
    if not verdict.exact:
        raise typer.Exit(EXIT_INVALID)


def reproduce(
    adapter: Annotated[
        str, typer.Argument(help="A trained adapter: latest, a name, name@digest12 or a digest.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train an adapter again from its lineage: EXACT, WEIGHTS-EXACT, EQUIVALENT (exit 0) or DIVERGED (exit 4)."""
    from llmops.train.reproduce import MAX_PROBE_CHANGE_FRAC
    from llmops.train.reproduce import reproduce as again

    with progress("reproduce") as report:
        found = again(adapter, find_workspace(), report)
    if json:
        as_json(asdict(found) | {"tolerance_frac": MAX_PROBE_CHANGE_FRAC})
    else:
        typer.echo(f"{found.grade:<10} {found.adapter}")
        if found.differs:
            typer.echo(f"differs    {found.differs}")
        if found.change_nats is not None:
            typer.echo(
                f"probes     {found.change_nats:.3g} apart where the adapter changes {found.effect_nats:.3g}; "
                f"EQUIVALENT is up to {MAX_PROBE_CHANGE_FRAC:.0%} of that"
            )
        for hint in found.hints:
            typer.echo(f"hint       {hint}")
        if found.again:
            typer.echo(f"digest     {found.again}")
    if found.grade == "DIVERGED":
        raise typer.Exit(EXIT_INVALID)
