"""`llmops usage`: what was asked for and what it cost."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from llmops.cli.output import as_json, table
from llmops.db import open_database
from llmops.errors import BadRequest
from llmops.settings import find_workspace

if TYPE_CHECKING:
    from llmops.serving.spending import Spent


def usage(
    by: Annotated[str, typer.Option(help="key, adapter, model, tenant or day.")] = "key",
    since: Annotated[
        str | None, typer.Option(help="First day, as 2026-11-30 (UTC); default: all there is.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the sums.")] = False,
) -> None:
    """Print requests, tokens and cost, by key, adapter, model, tenant or day; a running gateway adds every second."""
    from llmops.serving.spending import Group, spent

    if by not in get_args(Group):
        raise BadRequest(f"--by: {by!r} is none; use {', '.join(get_args(Group))}")
    group: Group = next(name for name in get_args(Group) if name == by)
    found = spent(open_database(find_workspace().database_url), group, _day(since))
    if json:
        as_json([{"by": by, **asdict(row)} for row in found])
        return
    header = (by, "requests", "errors", "prompt tokens", "answer tokens", "cost")
    typer.echo(table(header, [_cells(row, by) for row in found]))
    n_estimated = sum(row.n_estimated for row in found)
    if n_estimated:
        typer.echo(f"tokens of {n_estimated:,} requests are estimates: their answers broke off", err=True)


def _cells(row: Spent, by: str) -> tuple[str, ...]:
    what = row.what[:12] if by == "adapter" else row.what
    if by == "key":
        what = f"{row.what}  {row.name}" if row.what else "none (open)"
    counts = (row.n_requests, row.n_errors, row.n_prompt_tokens, row.n_completion_tokens)
    cost = f"{row.cost:.4f} {row.currency}" if row.currency else "-"
    return (what, *(f"{n:,}" for n in counts), cost)


def _day(given: str | None) -> str | None:
    try:
        return None if given is None else date.fromisoformat(given).isoformat()
    except ValueError:
        raise BadRequest(f"--since: {given!r} is no day; give one as 2026-11-30") from None
