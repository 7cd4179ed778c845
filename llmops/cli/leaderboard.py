"""`llmops feedback leaderboard`: which model people like best, over all campaigns."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from llmops.cli.output import as_json, table
from llmops.errors import BadRequest
from llmops.registry.adapters import Registry
from llmops.schema import short
from llmops.settings import find_workspace


def leaderboard(
    name: Annotated[
        str | None,
        typer.Argument(help="Campaigns with adapters of this name, or of a base (its digest); default: all."),
    ] = None,
    cluster: Annotated[
        Literal["item", "rater"],
        typer.Option(help="What intervals resample whole: prompts, or raters."),
    ] = "item",
    json: Annotated[bool, typer.Option("--json", help="Print all figures.")] = False,
) -> None:
    """Rank adapters by every vote of all campaigns: Bradley and Terry's strengths with 95 % intervals.

    How a gate's votes go is not told before they may be looked at.
    """
    from llmops.ratings.league import leagues

    registry = Registry.of(find_workspace())
    found = leagues(registry, name, cluster)
    if not found:
        whose = "" if name is None else f" of {name}"
        raise BadRequest(f"leaderboard: no campaign compares models{whose}; `llmops feedback list` shows all")
    if json:
        as_json([league.to_dict() for league in found])
        return
    called = {record.adapter: record.model_name for record in registry.adapters()}
    for league in found:
        called.setdefault(league.base, f"base@{short(league.base)}")
        typer.echo(
            f"base     {short(league.base)}, {len(league.campaigns)} campaigns; bootstrap over {cluster}s"
        )
        for board in league.boards:
            header = ("place", "model", "strength", "95 %", "won", "votes")
            rows = [
                (i, called.get(one.system, short(one.system)), f"{one.strength:+.2f}",
                 f"[{one.low:+.2f}, {one.high:+.2f}]", f"{one.wins:g}", one.n_votes)
                for i, one in enumerate(board.rows, start=1)
            ]  # fmt: skip
            typer.echo(table(header, rows))
            if board.is_thin:
                typer.echo(
                    f"note     {board.n_clusters} {cluster}s are too few for these intervals to be believed"
                )
        if not league.boards:
            typer.echo("note     there are no votes between two known models yet")
        if len(league.boards) > 1:
            typer.echo("note     models of one table were never compared with those of another")
        for campaign in league.withheld:
            typer.echo(f"withheld {campaign}: nobody looks at a gate's votes before all are in")
