"""Checkpoints of a run on the disk: which of them are whole, which is the newest, and what the run was made from.

A checkpoint is a folder `checkpoint-STEP` under the run's `trainer/`. It is whole once its manifest is there, which is
written last and after every other file has reached the disk: a save that was cut off anywhere leaves none. Loads no
training library.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmops.ledger import Ledger
from llmops.manifest import MANIFEST, manifest_of, sync_to_disk
from llmops.schema import JsonDict, canonical_json
from llmops.settings import Workspace

FOLDER = "trainer"
"""Folder of a run that holds its checkpoints."""
INPUTS_FILE = "inputs.json"
"""File of a run that says what it was made from: recipe, data, base, libraries."""
_PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """All that training needs to go on behind `step` optimizer steps, in a folder."""

    step: int
    folder: Path


def checkpoints(run: Path) -> list[Checkpoint]:
    """Checkpoints of the run in this folder that were written to their end, oldest first; their files are not read."""
    found = [
        Checkpoint(int(path.name.removeprefix(_PREFIX)), path)
        for path in (run / FOLDER).glob(f"{_PREFIX}*")
        if path.name.removeprefix(_PREFIX).isdecimal() and (path / MANIFEST).is_file()
    ]
    return sorted(found, key=lambda c: c.step)


def newest_whole(run: Path) -> Checkpoint | None:
    """The newest checkpoint whose every file has the digest it was written with; None without any."""
    return next((c for c in reversed(checkpoints(run)) if _is_whole(c.folder)), None)


def _is_whole(folder: Path) -> bool:
    try:
        stored = json.loads((folder / MANIFEST).read_bytes())
        return bool(stored == manifest_of(folder))
    except (OSError, ValueError):
        return False


def seal(folder: Path) -> None:
    """Make a checkpoint whole: its files reach the disk, then its manifest does.

    Raises:
        OSError: the disk did not take it.
    """
    for path in (*(p for p in folder.rglob("*") if p.is_file()), folder):
        sync_to_disk(path)
    draft = folder.with_name(f".{folder.name}.{MANIFEST}")
    draft.write_bytes(canonical_json(manifest_of(folder)))
    sync_to_disk(draft)
    draft.replace(folder / MANIFEST)
    sync_to_disk(folder)
    sync_to_disk(folder.parent)


def remove(folder: Path) -> None:
    """Remove a checkpoint or what there is of one; it stops being whole first."""
    with suppress(FileNotFoundError):
        (folder / MANIFEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def prune(run: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints."""
    for old in checkpoints(run)[:-keep]:
        remove(old.folder)


def discard_unusable(run: Path, after: int) -> None:
    """Remove what a cut-off save left, and checkpoints behind step `after`, which training will write again."""
    usable = {c.folder for c in checkpoints(run) if c.step <= after}
    for path in (run / FOLDER).glob(f"*{_PREFIX}*"):
        if path not in usable:
            remove(path) if path.is_dir() else path.unlink(missing_ok=True)


def read_inputs(run: Path) -> JsonDict | None:
    """What a run was made from; None when it never came to know, or the file is damaged."""
    try:
        found = json.loads((run / INPUTS_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Resumable:
    """A run that has not finished and has a checkpoint: `llmops finetune --resume` can go on with it."""

    run: str
    folder: Path
    checkpoint: Checkpoint  # the newest; whether it is whole is seen when it is read
    inputs: JsonDict

    @property
    def n_steps(self) -> int:
        """Steps the run shall take in all."""
        return int(self.inputs["recipe"]["n_steps"])


def resumable_runs(workspace: Workspace, ledger: Ledger) -> list[Resumable]:
    """Runs that can be gone on with, newest first; those that a process works on are among them."""
    finished = {str(event.body["run"]) for event in ledger.events("run.finished")}
    folders = sorted(workspace.runs.iterdir(), reverse=True) if workspace.runs.is_dir() else []
    found = []
    for folder in (f for f in folders if f.is_dir() and f.name not in finished):
        saved, inputs = checkpoints(folder), read_inputs(folder)
        if saved and inputs:
            found.append(Resumable(folder.name, folder, saved[-1], inputs))
    return found
