"""What commands share: progress with the time left, tables, and starting themselves as a process of its own.

Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from llmops.errors import CouldNotRun
from llmops.schema import Progress

PLAIN_EVERY_S = 5.0
START_TIMEOUT_S = 900.0

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
    started, last, first, known = time.monotonic(), 0.0, 0, 0

    def report(done: int, total: int, note: str) -> None:
        nonlocal last, started, first, known
        now = time.monotonic()
        if total != known:  # what is gone on with does not begin at 0, and what came before had another speed
            started, first, known = now, done, total
        if now - last < PLAIN_EVERY_S and not 0 < total == done:
            return
        last = now
        left = ""
        if total > done > first:
            left = f", about {(now - started) / (done - first) * (total - done):.0f} s left"
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


@dataclass(frozen=True)
class Detached:
    """A command to run as a process of its own: its words, the file its output goes to, and how it tells its address.

    `url_of` gets the child's pid and returns None until that process answers.
    """

    words: tuple[str, ...]
    log: Path
    url_of: Callable[[int], str | None]


def start_detached(command: Detached) -> str:
    """Start a command as a process of its own and wait until it answers; returns its URL.

    Raises:
        CouldNotRun: it ended first (its own last line is in the message), or did not answer in time.
    """
    title, log = command.words[0], command.log
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*SELF, *command.words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    started = time.monotonic()
    with progress(title) as report:
        while time.monotonic() - started < START_TIMEOUT_S:
            if url := command.url_of(child.pid):
                return url
            if child.poll() is not None:
                raise CouldNotRun(
                    _last_error(log) or f"{title}: ended with code {child.returncode}; see {log}"
                )
            report(0, 0, f"starting, {time.monotonic() - started:.0f} s")
            time.sleep(0.1)
    child.terminate()
    raise CouldNotRun(f"{title}: did not answer within {START_TIMEOUT_S:.0f} s; see {log}")


def _last_error(log: Path) -> str | None:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else None
