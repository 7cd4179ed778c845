"""What commands print with: progress with the time left, and tables. Results go to stdout, progress to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from llmops.schema import Progress

PLAIN_EVERY_S = 5.0

SELF = (sys.executable, "-P", "-m", "llmops.cli")
"""This command line in a child; -P because a workspace may have a folder named like a library."""


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A progress callback: a live bar on a terminal, a line every few seconds elsewhere."""
    if sys.stderr.isatty():
        with _bar(title) as callback:
            yield callback
    else:
        yield _lines(title)


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total or None, note=note)


def _lines(title: str) -> Progress:
    started, last = time.monotonic(), 0.0

    def report(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PLAIN_EVERY_S and not 0 < total == done:
            return
        last = now
        left = (
            f", about {(now - started) / done * (total - done):.0f} s left" if done and total > done else ""
        )
        count = f" {done}/{total}" if total else ""
        typer.echo(f"  {title}{count}{left}  {note}".rstrip(), err=True)

    return report


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as aligned columns of text under a header; an empty list gives the header alone."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def as_json(value: object) -> None:
    """Print a value as indented JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
