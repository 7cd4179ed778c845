"""`llmops adapter`: adapters of this workspace, trained here or elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmops.cli.finetune import print_adapter
from llmops.cli.output import progress, table
from llmops.registry.adapters import Registry
from llmops.schema import short
from llmops.settings import find_workspace

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Adapters, trained here or elsewhere.")


@app.command("list")
def list_adapters() -> None:
    """List all registered adapters, oldest first."""
    registry = Registry.of(find_workspace())
    rows = [(a.model_name, a.kind, a.lora_rank, a.base_ref, short(a.base)) for a in registry.adapters()]
    typer.echo(table(("adapter", "kind", "rank", "base", "base digest"), rows))


@app.command()
def show(
    adapter: Annotated[str, typer.Argument(help="latest, a name, name@digest12, or the start of a digest.")],
    json: Annotated[bool, typer.Option("--json", help="Print the record and its lineage.")] = False,
) -> None:
    """Show an adapter and where it comes from, after checking every byte of it."""
    registry = Registry.of(find_workspace())
    record = registry.adapter(adapter)
    folder = registry.verify(record)
    print_adapter(registry, record, json)
    if not json:
        typer.echo(f"files    {folder}")


@app.command("import")
def import_(
    folder: Annotated[
        Path, typer.Argument(help="A folder saved by PEFT (adapter_config.json, safetensors).")
    ],
    base: Annotated[str, typer.Option(help="The base model it was trained on.")],
    name: Annotated[str, typer.Option(help="The name it gets here.")],
    system: Annotated[str | None, typer.Option(help="Default system prompt it was trained with.")] = None,
) -> None:
    """Let an adapter trained elsewhere in: files, servability, key names and effect are checked first."""
    from llmops.train.importer import ImportRequest, import_adapter

    workspace = find_workspace()
    with progress("import") as report:
        record = import_adapter(ImportRequest(folder, base, name, system), workspace, report)
    print_adapter(Registry.of(workspace), record, json=False)
