"""A run's folder: how it is made, held, gone back to, and what is left in it when the run ends.

`.llmops/runs/<run>/` has recipe.json (resolved, with its digest), inputs.json (what resuming compares), metrics.jsonl,
quality.json, dropped.jsonl, quarantine.jsonl (the dropped rows themselves, if any), and error.txt when the run failed.
Checkpoints lie in `trainer/`: they go when the run has finished and stay when it has not, for `finetune --resume`.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from llmops import checkpoints
from llmops.errors import BadRequest, Interrupted, LlmopsError, StoreError
from llmops.ledger import Ledger
from llmops.schema import JsonDict
from llmops.settings import RUN_LOCK, RUN_SCRATCH, Workspace, now
from llmops.train.lineage import GitState, git_state
from llmops.train.recipe import Overrides, set_words

RECIPE_FILE, METRICS_FILE, ERROR_FILE = "recipe.json", "metrics.jsonl", "error.txt"


@dataclass(frozen=True)
class Run:
    """A run in progress: its id, its folder, the state of the code when it began, and the lock it holds.

    The kernel takes the lock back however the process ends: a run that was killed is told from one that goes on by it.
    """

    id: str
    folder: Path
    git: GitState | None
    lock: FileLock
    recipe_file: Path
    overrides: Overrides = ()

    @property
    def words(self) -> str:
        """What follows `llmops finetune` to run the same again."""
        return " ".join(shlex.quote(word) for word in (str(self.recipe_file), *set_words(self.overrides)))


def begin(name: str, recipe_file: Path, workspace: Workspace, overrides: Overrides = ()) -> Run:
    """A new run of the recipe called `name`, held by this process.

    Raises:
        StoreError: its folder cannot be made.
    """
    stamp = re.sub(r"[^0-9T]", "", now())[:15]
    run_id = f"{stamp}-{name}-{uuid.uuid4().hex[:4]}"
    folder = workspace.runs / run_id
    lock = FileLock(folder / RUN_LOCK)
    try:
        folder.mkdir(parents=True)
        lock.acquire(timeout=0)
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot be made ({error.strerror}); free space or fix permissions"
        ) from error
    return Run(run_id, folder, git_state(workspace.root), lock, recipe_file, overrides)


def take_up(folder: Path, recipe_file: Path, workspace: Workspace) -> Run:
    """A run that was begun before, held by this process from now on.

    Raises:
        BadRequest: another process works on it.
    """
    lock = FileLock(folder / RUN_LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BadRequest(
            f"run {folder.name}: another process works on it; wait for it, or end that process first"
        ) from None
    return Run(folder.name, folder, git_state(workspace.root), lock, recipe_file)


@contextmanager
def recorded(run: Run, ledger: Ledger) -> Iterator[None]:
    """The block is the run's work: its failure is written down and raised as one of ours; then the run is let go.

    Raises:
        Interrupted: the block was; says how to go on.
        StoreError: the disk did not take something.
    """
    try:
        yield
    except BaseException as error:
        known = _as_ours(error, run)
        _note_failure(known, run, ledger)
        _clean(run, finished=False)
        if known is error:
            raise
        raise known from error
    else:
        _clean(run, finished=True)
    finally:
        run.lock.release()


def _clean(run: Run, finished: bool) -> None:
    """Remove the run's scratch folders, but not the whole checkpoints of a run that has not finished."""
    kept = {checkpoints.FOLDER} if not finished and checkpoints.checkpoints(run.folder) else set()
    for scratch in set(RUN_SCRATCH) - kept:
        shutil.rmtree(run.folder / scratch, ignore_errors=True)
    if kept:
        checkpoints.discard_unusable(run.folder, after=checkpoints.checkpoints(run.folder)[-1].step)


def _as_ours(error: BaseException, run: Run) -> BaseException:
    """Interruptions and full disks as errors that say what to do; all else as it is."""
    if isinstance(error, KeyboardInterrupt | Interrupted):
        code = error.signum if isinstance(error, Interrupted) else None
        return Interrupted(f"run {run.id}: interrupted; nothing is registered; {how_to_go_on(run)}", code)
    if isinstance(error, OSError | StoreError):
        return StoreError(f"run {run.id}: {error}; free space or fix permissions, then {how_to_go_on(run)}")
    return error


def how_to_go_on(run: Run) -> str:
    """What to type to get the adapter after all: resume behind the newest whole checkpoint, or begin again."""
    newest = checkpoints.newest_whole(run.folder)
    if newest is None:
        return f"run it again: llmops finetune {run.words}"
    return f"go on behind step {newest.step}: llmops finetune --resume {run.recipe_file}"


def _note_failure(error: BaseException, run: Run, ledger: Ledger) -> None:
    """Write the failure down where there still is room; what stands in the way of that is noted on the error."""
    text = str(error) if isinstance(error, LlmopsError) else "".join(traceback.format_exception(error))
    try:
        ledger.append("run.failed", {"run": run.id, "error": type(error).__name__})
        (run.folder / ERROR_FILE).write_text(text + "\n")
    except Exception as second:  # the first error is the one to be seen
        error.add_note(f"run {run.id}: its failure could not be written down ({second})")


def cut_metrics(folder: Path, step: int) -> list[JsonDict]:
    """Take what lies behind `step` out of a run's metrics.jsonl, and a line that was cut off; returns the rest."""
    path = folder / METRICS_FILE
    lines = path.read_text().splitlines() if path.is_file() else []
    kept = [
        line for line in map(_line, lines) if line is not None and line["step"] <= step and "loss" in line
    ]
    draft = path.with_suffix(".draft")
    draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
    draft.replace(path)
    return kept


def _line(text: str) -> JsonDict | None:
    try:
        found: JsonDict = json.loads(text)
    except ValueError:
        return None  # the process died while it wrote
    return found
