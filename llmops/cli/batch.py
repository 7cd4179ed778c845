"""`llmops batch`: many requests from a file, at low priority."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from llmops.cli.output import progress
from llmops.errors import BadRequest
from llmops.settings import find_workspace

HOUR_S = 3600.0


def batch(
    source: Annotated[
        Path, typer.Argument(help="Requests in OpenAI's batch format, one JSON object a line.")
    ],
    out: Annotated[Path, typer.Argument(help="Where answers go; rows that it has already are kept.")],
    url: Annotated[
        str | None, typer.Option(help="Endpoint; left out: what serves in this workspace.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 8,
    window_h: Annotated[
        float, typer.Option(min=0.0, help="Hours until what is not answered expires.")
    ] = 24.0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again what was not answered with status 200.")
    ] = False,
) -> None:
    """Answer a file of requests, giving way to all other traffic; run again after a crash, it goes on.

    The key is read from LLMOPS_API_KEY, where the endpoint asks for one.
    """
    from llmops.serving.batch import BatchPlan, endpoint_url, run_batch

    plan = BatchPlan(
        source=source, out=out, url=endpoint_url(url, None if url else _running_url()),
        concurrency=concurrency, window_s=window_h * HOUR_S, retry_failed=retry_failed,
        key=os.environ.get("LLMOPS_API_KEY"),
    )  # fmt: skip
    with progress("batch") as report:
        done = run_batch(plan, report)
    typer.echo(f"answered {done.n_requests - done.n_failed} of {done.n_requests} requests; rows in {out}")
    if done.n_failed:
        typer.echo(f"{done.n_failed} failed; their rows say why, and --retry-failed asks them again")


def _running_url() -> str | None:
    from llmops.serving.lock import running

    try:
        found = running(find_workspace())
    except BadRequest:
        return None
    return found.url if found else None
