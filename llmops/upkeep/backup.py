"""`llmops backup`: everything a workspace is in one file, taken while it is worked in.

The database is read first, at one moment: whoever tells the ledger has stored before, so everything which that moment
names is in the store. Members: `workspace/`, `database/`, `store/`, `runs/`, `mlflow.db`, and the list of them all.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from llmops import __version__
from llmops.db import HEAD_REVISION
from llmops.errors import InvalidEvidence
from llmops.ledger import Ledger
from llmops.registry.names import release_anchors
from llmops.schema import Progress, no_progress
from llmops.settings import MARKER, RUN_LOCK, RUN_SCRATCH, Workspace, now
from llmops.store import Store
from llmops.upkeep.bundle import BundleWriter, writing_bundle
from llmops.upkeep.dump import dump_tables, dumped_events, dumped_head
from llmops.upkeep.reach import digests_in, missing, reachable, stored
from llmops.upkeep.template import FOLDERS

WORKSPACE, DATABASE, STORE, RUNS, MLFLOW = "workspace", "database", "store", "runs", "mlflow.db"
SCRATCH_PREFIX = "backup-"  # of a folder in .llmops/
MAX_RUN_FILE_BYTES = 64 << 20
"""A run's larger files are not logs or curves any more."""


@dataclass(frozen=True)
class Backup:
    """What was written: the digest of the list of members, and how much of what there is."""

    digest: str
    n_events: int
    n_ratings: int
    n_artifacts: int
    n_files: int  # of the workspace and its runs
    left_out: tuple[Path, ...]  # files of runs that are too large


def back_up(workspace: Workspace, target: Path, progress: Progress = no_progress) -> Backup:
    """Write a backup of the workspace to `target` (.tar or .tar.gz); a gateway and raters may go on meanwhile.

    Raises:
        BadRequest: there is a file already, or its name says no format.
        InvalidEvidence: the ledger does not verify, or an artifact it reaches is lost or damaged: such a backup could
            not be restored.
        StoreError: the disk did not take it; nothing is left behind.
    """
    store, ledger = Store.of(workspace), Ledger.of(workspace)
    with writing_bundle(target) as bundle, _scratch(workspace) as scratch:
        ledger.verify(release_anchors(store))
        parts = Path(scratch)
        counts = dump_tables(ledger.engine, parts)
        for table in counts:
            bundle.add(f"{DATABASE}/{table}.jsonl", parts / f"{table}.jsonl")
        n_artifacts = _add_artifacts(bundle, store, parts, progress)
        n_files, left_out = _add_files(bundle, workspace)
        if (workspace.state / MLFLOW).is_file():
            bundle.add(MLFLOW, _copy_sqlite(workspace.state / MLFLOW, parts / MLFLOW))
        seq, head = dumped_head(parts)
        fields = {
            "created_at": now(), "llmops": __version__, "revision": HEAD_REVISION, "tables": counts,
            "ledger": {"seq": seq, "hash": head},
        }  # fmt: skip
        digest = bundle.finish(fields)
    return Backup(digest, counts["events"], counts["ratings"], n_artifacts, n_files, left_out)


def _scratch(workspace: Workspace) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=workspace.state)


def _add_artifacts(bundle: BundleWriter, store: Store, parts: Path, progress: Progress) -> int:
    """Add what the dumped events reach, each verified; returns how many artifacts that is."""
    events = list(dumped_events(parts))
    seeds = {digest for event in events for digest in digests_in(event.body)}
    reached = sorted(reachable(store, stored(store), seeds))
    lost = missing(store, events, reached)
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise InvalidEvidence(f"store: {lost[0]}{more} is gone; restore it from an earlier backup")
    for i, artifact in enumerate(reached, start=1):
        folder = store.verify(*artifact)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            bundle.add(
                f"{STORE}/{artifact.kind}/{artifact.digest}/{path.relative_to(folder).as_posix()}", path
            )
        progress(i, len(reached), str(artifact))
    return len(reached)


def _add_files(bundle: BundleWriter, workspace: Workspace) -> tuple[int, tuple[Path, ...]]:
    """Add the workspace's own files and its runs'; how many they are, and those that are too large."""
    n_files, left_out = 0, []
    for path in _workspace_files(workspace.root):
        bundle.add(f"{WORKSPACE}/{path.relative_to(workspace.root).as_posix()}", path)
        n_files += 1
    for path in _run_files(workspace):
        with suppress(FileNotFoundError):  # a run in progress moves its files
            if path.stat().st_size > MAX_RUN_FILE_BYTES:
                left_out.append(path)
                continue
            bundle.add(f"{RUNS}/{path.relative_to(workspace.runs).as_posix()}", path)
            n_files += 1
    return n_files, tuple(left_out)


def _workspace_files(root: Path) -> Iterator[Path]:
    """llmops.yaml and the files a user edits; in `data/` those beside the YAML files, not what is built below."""
    yield root / MARKER
    for folder in FOLDERS:
        for path in sorted((root / folder).glob("*" if folder == "data" else "**/*")):
            hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(root).parts)
            if path.is_file() and not hidden and path.suffix != ".pyc":
                yield path


def _run_files(workspace: Workspace) -> Iterator[Path]:
    """Logs, curves and pages of the runs, without what is scratch or belongs to a process."""
    for path in sorted(workspace.runs.rglob("*")) if workspace.runs.is_dir() else []:
        parts = path.relative_to(workspace.runs).parts
        if path.is_file() and len(parts) > 1 and parts[1] not in (*RUN_SCRATCH, RUN_LOCK):
            yield path


def _copy_sqlite(source: Path, target: Path) -> Path:
    """A copy of an SQLite file as it is at one moment, also while it is written."""
    with (
        closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as reader,
        closing(sqlite3.connect(target)) as writer,
    ):
        reader.backup(writer)
    return target
