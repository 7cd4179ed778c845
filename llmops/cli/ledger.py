"""`llmops ledger`: the chain of events that decides what is true."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated

import typer

from llmops.ledger import EVENT_KINDS, Ledger
from llmops.ratings.check import verify_ratings
from llmops.registry.names import release_anchors
from llmops.settings import find_workspace
from llmops.store import Store

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The hash-chained list of events.")


@app.command()
def verify() -> None:
    """Recompute the chain, compare it with the heads that releases and approvals carry, and every rating with it.

    Exit 4 names what was changed.
    """
    workspace = find_workspace()
    store, ledger = Store.of(workspace), Ledger.of(workspace)
    anchors = release_anchors(store)
    n_events = ledger.verify(anchors)
    typer.echo(f"ledger: {n_events} events, chain whole, {len(anchors)} anchors outside the database agree")
    n_ratings = verify_ratings(store, ledger)
    typer.echo(f"ratings: {n_ratings} ratings agree, with their sides, items and campaigns")


@app.command()
def log(
    kind: Annotated[str | None, typer.Option(help="Only this kind, or kinds that start with it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print the events, oldest first."""
    if kind and not any(k.startswith(kind) for k in EVENT_KINDS):
        raise typer.BadParameter(f"{kind!r} is no kind of event; known: {', '.join(EVENT_KINDS)}")
    for event in Ledger.of(find_workspace()).events():
        if kind and not event.kind.startswith(kind):
            continue
        if json:
            row = {
                "seq": event.seq,
                "at": event.at,
                "kind": event.kind,
                "body": event.body,
                "hash": event.hash,
            }
            typer.echo(jsonlib.dumps(row, ensure_ascii=False))
        else:
            pairs = (f"{k}={str(v)[:12] if len(str(v)) == 64 else v}" for k, v in event.body.items())
            typer.echo(f"{event.seq:>4}  {event.at}  {event.kind:<20} {' '.join(pairs)}")
