"""`llmops data show-mask`: rows as training sees them, trained tokens marked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmops.cli.output import as_json, progress
from llmops.settings import find_workspace

if TYPE_CHECKING:
    from rich.text import Text

    from llmops.train.show_mask import Shown, ShownRow

OPEN, CLOSE = "⟦", "⟧"
"""Stand around trained tokens where there is no colour."""


def show_mask(
    recipe: Annotated[Path, typer.Argument(help="A recipe such as recipes/docstrings-sft.yaml.")],
    row: Annotated[
        str | None, typer.Option(help="One row: its number, from 1, or its place, file:line.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="How many rows to show, from the first on.")] = 3,
    ids: Annotated[bool, typer.Option("--ids", help="Print the token ids, too.")] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help=f"Mark trained tokens with {OPEN} {CLOSE} on a terminal, too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print rows, segments and ids as JSON.")] = False,
) -> None:
    """Show rows as training sees them, with the tokens that are trained on marked; loads no weights."""
    from llmops.train.show_mask import show_mask as shown

    workspace = find_workspace()
    with progress("show-mask") as report:
        found = shown(recipe, workspace, row or n, report)
    if json:
        as_json({"n_rows": found.n_rows, "rows": [one.to_dict() for one in found.rows]})
        return
    colour = sys.stdout.isatty() and not no_color
    for one in found.rows:
        _print_row(one, colour, ids)
    typer.echo("rows     " + ", ".join(f"{name} {count:,}" for name, count in found.n_rows.items()))


def _print_row(row: ShownRow, colour: bool, ids: bool) -> None:
    if row.reason is not None:
        typer.echo(f"{row.source}  dropped: {row.reason}\n")
        return
    for sequence in row.sequences:
        title = f", {sequence.title}" if sequence.title else ""
        typer.echo(f"{row.source}{title}: {sequence.n_trained} of {sequence.n_tokens} tokens are trained on")
        _print_text(sequence, colour)
        if ids:
            for segment in sequence.segments:
                mark = "trained" if segment.trained else "read"
                typer.echo(f"{mark:8} {' '.join(map(str, segment.ids))}")
        typer.echo()


def _print_text(sequence: Shown, colour: bool) -> None:
    if not colour:
        marked = (f"{OPEN}{s.text}{CLOSE}" if s.trained else s.text for s in sequence.segments)
        typer.echo("".join(marked).rstrip("\n"))
        return
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(coloured(sequence))


def coloured(sequence: Shown) -> Text:
    """A sequence's text, trained tokens black on green and the others dim."""
    from rich.text import Text

    text = Text()
    for segment in sequence.segments:
        text.append(segment.text, "black on green" if segment.trained else "dim")
    return text
