"""`finetune`: a recipe becomes a registered adapter, or a failed run that says why. The ledger has both.

Writes `.llmops/runs/<run>/`: recipe.json (resolved, with its digest), metrics.jsonl, dropped.jsonl, quarantine.jsonl
(the dropped rows themselves, if any), and error.txt when it failed. The adapter itself goes into the store; nothing is
registered unless all of it was written and acts.
"""

from __future__ import annotations

import json
import re
import shutil
import time
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from llmops.data.quarantine import DROPPED_FILE
from llmops.errors import LlmopsError, StoreError, TrainingFailed
from llmops.records import AdapterRecord, Lineage, PreferenceSnapshot, Probes, RewardProbes
from llmops.registry.adapters import NewAdapter, Registry
from llmops.schema import Progress, no_progress
from llmops.settings import RUN_LOCK, RUN_SCRATCH, Workspace, now
from llmops.tracking import TrackedRun, Tracker, start_tracking
from llmops.train.lineage import GitState, git_state, hardware, installed_packages
from llmops.train.methods import TRAIN
from llmops.train.plan import Plan, plan
from llmops.train.probes import change_nats, choose_probes, compute_probes, require_change, require_effect
from llmops.train.recipe import Reward, load_recipe
from llmops.train.rewards import compute_reward_probes, require_spread

if TYPE_CHECKING:  # loads torch
    from llmops.train.session import Session

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


def finetune(recipe_path: Path, workspace: Workspace, progress: Progress = no_progress) -> AdapterRecord:
    """Train the adapter a recipe describes and register it.

    Args:
        recipe_path: a YAML file, see `llmops.train.recipe`.
        workspace: where data, store and ledger are.
        progress: told (step, steps, loss) while training and what is done before and after.

    Returns:
        The record of the registered adapter.

    Raises:
        ConfigError: the recipe or the machine's installation cannot do this run; nothing was loaded.
        DataError: the rows cannot be used; nothing was loaded.
        TrainingFailed: the loss is not finite, the adapter has no effect, or the run was interrupted.
        StoreError: the disk did not take a file; nothing is registered.
    """
    name = load_recipe(recipe_path).name
    registry = Registry.of(workspace)
    run = _begin(name, workspace)
    try:
        registry.ledger.append("run.started", {"run": run.id})
        record = _run(recipe_path, run, workspace, progress)
    except BaseException as error:
        known = _as_ours(error, run)
        _note_failure(known, run, registry)
        if known is error:
            raise
        raise known from error
    finally:
        for scratch in RUN_SCRATCH:
            shutil.rmtree(run.folder / scratch, ignore_errors=True)
        run.lock.release()
    return record


def _begin(name: str, workspace: Workspace) -> Run:
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
    return Run(run_id, folder, git_state(workspace.root), lock)


def _as_ours(error: BaseException, run: Run) -> BaseException:
    """Interruptions and full disks as errors that say what to do; all else as it is."""
    if isinstance(error, KeyboardInterrupt):
        return TrainingFailed(f"run {run.id}: interrupted; nothing is registered, run the recipe again")
    if isinstance(error, OSError):
        return StoreError(f"run {run.id}: {error}; free space or fix permissions, then run the recipe again")
    return error


def _note_failure(error: BaseException, run: Run, registry: Registry) -> None:
    """Write the failure down where there still is room; what stands in the way of that is noted on the error."""
    text = str(error) if isinstance(error, LlmopsError) else "".join(traceback.format_exception(error))
    try:
        registry.ledger.append("run.failed", {"run": run.id, "error": type(error).__name__})
        (run.folder / ERROR_FILE).write_text(text + "\n")
    except Exception as second:  # the first error is the one to be seen
        error.add_note(f"run {run.id}: its failure could not be written down ({second})")


def _show_failure(tracker: Tracker, error: BaseException) -> None:
    try:
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
    except Exception as second:  # a tracker that fails too must not hide the first error
        error.add_note(f"the tracker could not end its run ({second})")


def _run(recipe_path: Path, run: Run, workspace: Workspace, progress: Progress) -> AdapterRecord:
    planned = plan(recipe_path, workspace, run.folder, progress)
    written = {"digest": planned.recipe_digest, "recipe": planned.resolved}
    (run.folder / RECIPE_FILE).write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
    tracker = start_tracking(planned.recipe.tracking or "none", workspace, _tracked(planned, run))
    try:
        figures, probes = _train(planned, run, tracker, progress)
        lineage = _lineage(planned, run, figures, tracker.run_id)
        new = NewAdapter(
            name=planned.recipe.name,
            folder=run.folder / "adapter",
            base=planned.base,
            contract=planned.contract,
            probes=probes,
            lineage=lineage,
            extras=_extras(run),
        )
        registry = Registry.of(workspace)
        record = registry.register(new)
        body = {"run": run.id, "recipe": planned.recipe_digest, "adapter": record.adapter}
        registry.ledger.append("run.finished", body)
    except BaseException as error:
        _show_failure(tracker, error)
        raise
    tracker.finish("FINISHED", {"llmops.adapter": record.adapter})
    return record


def _train(
    planned: Plan, run: Run, tracker: Tracker, progress: Progress
) -> tuple[dict[str, float], Probes | RewardProbes]:
    """Train, save, and probe what was saved; the run's figures and the probes."""
    steps = planned.recipe.n_steps or 0
    started = time.monotonic()
    progress(0, steps, "loading the base model")
    with (run.folder / METRICS_FILE).open("a") as curve:

        def on_step(step: int, total: int, figures: dict[str, float]) -> None:
            line = {"step": step, **figures, "elapsed_s": round(time.monotonic() - started, 3)}
            curve.write(json.dumps(line) + "\n")
            curve.flush()
            tracker.log_metrics(figures, step)
            progress(step, total, f"loss {figures['loss']:.3f}")

        folder = run.folder / "adapter"
        session = _session(planned, run.folder / "trainer", folder)
        figures = TRAIN[planned.recipe.method.kind](planned.recipe, session, on_step)
        progress(steps, steps, "probing the saved adapter")
        probes, effects = _probe(planned, folder)
        figures |= effects
        tracker.log_metrics(figures, steps)
        curve.write(json.dumps({"step": steps, **figures}) + "\n")
    return figures, probes


def _session(planned: Plan, scratch: Path, folder: Path) -> Session[Any]:
    from llmops.train.session import Session

    parent = planned.parent.folder if planned.parent else None
    return Session(planned.base, planned.examples, planned.device, scratch, folder, parent, planned.aids)


def _probe(planned: Plan, folder: Path) -> tuple[Probes | RewardProbes, dict[str, float]]:
    """Probes of the saved adapter, and by how much it differs from its base and from the adapter it continues.

    Raises:
        TrainingFailed: it does not differ.
    """
    examples = (*planned.examples.held_out, *planned.examples.train)
    where = f"adapter {planned.recipe.name}"
    if isinstance(planned.recipe.method, Reward):
        rewards = compute_reward_probes(planned.base.path, folder, examples, planned.device)
        return rewards, {"reward_spread": require_spread(rewards, where)}
    token_ids = choose_probes([example.token_ids for example in examples])
    probes = compute_probes(planned.base.path, folder, token_ids, planned.device)
    effects = {"effect_nats": require_effect(probes, where)}
    if planned.parent:
        change = change_nats(probes, planned.base.path, planned.parent.folder, planned.device)
        where += f", which continues {planned.parent.record.model_name}"
        effects["effect_over_parent_nats"] = require_change(change, where)
    return probes, effects


def _tracked(planned: Plan, run: Run) -> TrackedRun:
    made_from = {"base": planned.base.digest, "prompt_contract": planned.contract.digest()}
    if planned.parent:
        made_from["continues"] = planned.parent.record.adapter
    return TrackedRun(
        name=run.id,
        params={**planned.resolved, "digests": {**made_from, "recipe": planned.recipe_digest}},
        tags={"llmops.run": run.id, "llmops.git_sha": run.git.sha or "none" if run.git else "none"},
        dataset_name=planned.examples.snapshot.name,
        dataset_digest=planned.examples.snapshot.digest(),
    )


def _lineage(planned: Plan, run: Run, figures: dict[str, float], tracking_run: str | None) -> Lineage:
    snapshot, seed = planned.examples.snapshot, planned.recipe.seed
    from_people = isinstance(snapshot, PreferenceSnapshot)
    # No seed makes the first weights of an adapter that continues another.
    seeds = {} if planned.parent else {"adapter": seed}
    return Lineage(
        origin="trained",
        recipe=planned.resolved,
        recipe_digest=planned.recipe_digest,
        dataset=None if from_people else snapshot.digest(),
        preferences=snapshot.digest() if from_people else None,
        continues=planned.parent.record.adapter if planned.parent else None,
        n_rows=planned.examples.n_rows,
        git_sha=run.git.sha if run.git else None,
        git_diff_sha256=run.git.diff_sha256 if run.git else None,
        seeds=seeds | {"order": seed, "held_out": seed},
        packages=installed_packages(),
        hardware=hardware(planned.device),
        tracking_run=tracking_run,
        metrics=figures,
    )


def _extras(run: Run) -> dict[str, bytes]:
    """The run's small files, to be kept beside the lineage."""
    names = (RECIPE_FILE, METRICS_FILE, DROPPED_FILE)
    files = {name: (run.folder / name).read_bytes() for name in names}
    return files | ({"git.diff": run.git.diff} if run.git and run.git.diff else {})
