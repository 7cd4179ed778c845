"""`llmops data`: dataset snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmops.cli.output import as_json, progress, table
from llmops.cli.quality import check, diff
from llmops.cli.show_mask import show_mask
from llmops.records import DatasetSnapshot, QualityReport
from llmops.registry.adapters import Registry
from llmops.schema import short
from llmops.settings import find_workspace

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Dataset snapshots.")
app.command("check")(check)
app.command("diff")(diff)


@app.command()
def build(config: Annotated[Path, typer.Argument(help="A data file such as data/docstrings.yaml.")]) -> None:
    """Read, check and split rows, and freeze them under a digest."""
    from llmops.data import build_snapshot
    from llmops.data.gate import Gates
    from llmops.data.quality.suites import suite_reader

    workspace = find_workspace()
    registry = Registry.of(workspace)
    reports: list[QualityReport] = []
    with progress("rows") as report:
        read_cases = suite_reader(workspace.suites, registry.store, registry.ledger)
        gates = Gates(read_cases, reports.append, report)
        snapshot = build_snapshot(config, registry.store, registry.ledger, report, gates)
    _print(snapshot)
    found = ", ".join(
        f"{name} {c.n_found} ({c.action})" for name, c in reports[0].checks.items() if c.n_found
    )
    typer.echo(f"checked  {found or 'nothing found'}")


@app.command("list")
def list_snapshots() -> None:
    """List the snapshots of this workspace, oldest first."""
    registry = Registry.of(find_workspace())
    rows = []
    for event in registry.ledger.events("dataset.snapshotted"):
        snapshot = registry.store.get_record(DatasetSnapshot, str(event.body["snapshot"]))
        n_kept, n_dropped = sum(snapshot.n_rows.values()), sum(snapshot.n_dropped.values())
        rows.append((snapshot.name, short(snapshot.digest()), n_kept, n_dropped, event.at))
    typer.echo(table(("name", "digest", "kept", "dropped", "at"), rows))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The dataset's name.")],
    json: Annotated[bool, typer.Option("--json", help="Print the record.")] = False,
) -> None:
    """Show the newest snapshot of a name: rows by pool, dropped rows by reason."""
    from llmops.data import find_snapshot

    registry = Registry.of(find_workspace())
    snapshot = find_snapshot(registry.store, registry.ledger, name)
    if json:
        as_json(snapshot.to_dict())
    else:
        _print(snapshot)
        typer.echo(f"files    {registry.store.path('dataset', snapshot.artifact)}")


def _print(snapshot: DatasetSnapshot) -> None:
    typer.echo(f"dataset {snapshot.name}@{short(snapshot.digest())}  ({snapshot.licence}; {snapshot.origin})")
    typer.echo("kept     " + ", ".join(f"{pool} {n}" for pool, n in snapshot.n_rows.items()))
    dropped = ", ".join(f"{reason} {n}" for reason, n in snapshot.n_dropped.items()) or "none"
    typer.echo(f"dropped  {dropped}")


app.command("show-mask")(show_mask)
