"""`llmops release`: move public names, on evidence."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from llmops.cli.output import progress, table
from llmops.errors import ApprovalsMissing, CouldNotRun, ReleaseRefused
from llmops.ledger import Event
from llmops.records import EngineSignature, Release
from llmops.registry.adapters import Registry
from llmops.registry.names import name_states
from llmops.registry.releases import request_override, request_promotion, request_rollback
from llmops.schema import short
from llmops.settings import Workspace, find_workspace

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Move public names, on evidence.")

ANSWER_TIMEOUT_S = 300.0
POLL_S = 0.02
WAIT_POLL_S = 0.25


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="The public name, as in the gate file.")],
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for approvals that are missing, then go on.")
    ] = 0.0,
) -> None:
    """Make the candidate of the newest decision the champion; refused without a PASS and its approvals (exit 3)."""
    from llmops.serving.server import running

    workspace = find_workspace()
    registry = Registry.of(workspace)
    serving = running(workspace)
    engine = serving.engine if serving else None
    event, release = _promoted(registry, name, engine, time.monotonic() + wait)
    settle(workspace, registry, event, release)


def _promoted(
    registry: Registry, name: str, engine: EngineSignature | None, deadline: float
) -> tuple[Event, Release]:
    """Ask for the promotion as soon as the newest decision has its approvals, or at `deadline` say what is missing."""
    waiting_for = None
    with progress(f"{name}") as report:
        while True:
            try:
                return request_promotion(registry, name, engine, waiting_for)
            except ApprovalsMissing as missing:
                waiting_for = missing.decision
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                report(0, 0, f"waits, {left:.0f} s more: {missing}")
            time.sleep(min(WAIT_POLL_S, left))


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="The public name.")],
    reason: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
) -> None:
    """Return to the champion before the present one; the engine keeps it loaded, so this takes under a second."""
    workspace = find_workspace()
    registry = Registry.of(workspace)
    event, release = request_rollback(registry, name, reason)
    settle(workspace, registry, event, release)


@app.command()
def override(
    name: Annotated[str, typer.Argument(help="The public name.")],
    adapter: Annotated[str, typer.Option(help="The adapter to release without evidence.")],
    reason: Annotated[str, typer.Option(help="Why; shown in every status while it stands.")],
) -> None:
    """Release without evidence in an emergency: recorded with reason and name, shown in every status afterwards."""
    workspace = find_workspace()
    registry = Registry.of(workspace)
    event, release = request_override(registry, name, registry.adapter(adapter), reason)
    settle(workspace, registry, event, release)


@app.command("list")
def list_releases() -> None:
    """List the public names with the releases behind them, newest last."""
    registry = Registry.of(find_workspace())
    rows = [
        (
            state.name,
            registry.adapter(r.adapter).model_name,
            r.kind,
            short(r.decision) if r.decision else "none",
            r.created_at,
        )
        for state in name_states(registry.store, registry.ledger).values()
        for r in state.history
    ]
    typer.echo(table(("name", "adapter", "by", "decision", "at"), rows))


def settle(workspace: Workspace, registry: Registry, event: Event, release: Release) -> None:
    """Wait for the gateway's answer to a request and print it; without a gateway say that it waits."""
    from llmops.serving.seat import somebody_serves

    model = registry.adapter(release.adapter).model_name
    if not somebody_serves(workspace):
        typer.echo(
            f"recorded, not serving: {release.public_name} -> {model} takes effect when `llmops serve` starts"
        )
        return
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while time.monotonic() < deadline:
        for answer in registry.ledger.events("release.activated", "release.refused", after=event.seq):
            if answer.body["release"] != event.body["release"]:
                continue
            if answer.kind == "release.refused":
                raise ReleaseRefused(
                    f"release {release.public_name}: the gateway refused: {answer.body['reason']}"
                )
            typer.echo(f"{release.public_name} -> {model}  ({release.kind}, event {answer.seq})")
            return
        time.sleep(POLL_S)
    raise CouldNotRun(
        f"release {release.public_name}: the gateway did not answer in {ANSWER_TIMEOUT_S:.0f} s; see `llmops status`"
    )
