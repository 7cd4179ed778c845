"""Runs that were begun and have not ended: which of them are dead, and what a killed one left on the disk.

Whoever works on a run holds the lock in its folder; the kernel takes it back however that process ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llmops.checkpoints import FOLDER
from llmops.ledger import EventKind, Ledger
from llmops.settings import RUN_LOCK, RUN_SCRATCH, Workspace

LONGEST_RUN_S = 30 * 86400.0
"""After this an unfinished run that cannot be asked (of another machine) is not waited for any more."""
RUN_KINDS: tuple[EventKind, ...] = ("run.started", "run.resumed", "run.finished", "run.failed")


@dataclass(frozen=True)
class Unfinished:
    """A run whose newest event is its start."""

    run: str
    age_s: float  # since it was begun
    dead: bool  # nobody works on it; False also when that cannot be known


def unfinished_runs(workspace: Workspace, ledger: Ledger) -> list[Unfinished]:
    """Runs whose newest event is their start or their being gone on with, oldest first."""
    newest = {str(e.body["run"]): e for e in ledger.events(*RUN_KINDS)}
    found = []
    for run, event in newest.items():
        if event.kind in ("run.started", "run.resumed"):
            age_s = (datetime.now(UTC) - datetime.fromisoformat(event.at)).total_seconds()
            with holding(workspace.runs / run) as held:
                found.append(Unfinished(run, age_s, held))
    return found


def scratch_folders(workspace: Workspace, spared: set[str], kept: set[str]) -> list[Path]:
    """Scratch folders of runs that have ended or are dead.

    Args:
        workspace: where runs lie.
        spared: the names of runs that are still worked on.
        kept: the names of runs whose checkpoints stay.
    """
    if not workspace.runs.is_dir():
        return []
    runs = [path for path in sorted(workspace.runs.iterdir()) if path.is_dir() and path.name not in spared]
    folders = [run / name for run in runs for name in RUN_SCRATCH if (run / name).is_dir()]
    return [folder for folder in folders if folder.name != FOLDER or folder.parent.name not in kept]


@contextmanager
def holding(folder: Path) -> Iterator[bool]:
    """Hold a run's lock for the block; False when somebody else holds it, or it never had one."""
    from filelock import FileLock, Timeout

    if not (folder / RUN_LOCK).is_file():
        yield False
        return
    lock = FileLock(folder / RUN_LOCK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
