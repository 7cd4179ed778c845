"""`finetune`: a recipe becomes a registered adapter, or a failed run that says why. The ledger has both.

Writes the run's folder (see `llmops.train.run`). The adapter itself goes into the store; nothing is registered unless
all of it was written and acts.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmops.checkpoints import INPUTS_FILE, Checkpoint, discard_unusable, read_inputs
from llmops.data.quarantine import DROPPED_FILE
from llmops.errors import Interrupted
from llmops.records import AdapterRecord, Lineage, PreferenceSnapshot, Probes, RewardProbes
from llmops.registry.adapters import NewAdapter, Registry
from llmops.schema import Progress, canonical_json, no_progress
from llmops.settings import Workspace
from llmops.tracking import TrackedRun, Tracker, start_tracking
from llmops.train.curve import Curve
from llmops.train.effects import measure
from llmops.train.follow import Shared, meet, share
from llmops.train.gate import QUALITY_FILE
from llmops.train.interrupt import Stop, listening
from llmops.train.lineage import hardware, installed_packages
from llmops.train.memory.release import release_memory
from llmops.train.methods import TRAIN
from llmops.train.plan import Plan, plan
from llmops.train.recipe import Overrides, load_recipe
from llmops.train.resume import OF_THIS_MACHINE, find_resumable, inputs_of, require_same, write_inputs
from llmops.train.run import METRICS_FILE, RECIPE_FILE, Run, begin, cut_metrics, recorded
from llmops.train.scorers import reward_files

if TYPE_CHECKING:  # loads torch
    from llmops.train.session import Session

SCRATCH, ADAPTER = "trainer", "adapter"


@dataclass(frozen=True)
class Work:
    """A planned run: what it is about to do, who may end it, and the checkpoint that it goes on behind."""

    planned: Plan
    run: Run
    stop: Stop
    resume: Checkpoint | None = None


def finetune(
    recipe_path: Path, workspace: Workspace, progress: Progress = no_progress, overrides: Overrides = ()
) -> AdapterRecord:
    """Train the adapter a recipe describes and register it.

    Args:
        recipe_path: a YAML file, see `llmops.train.recipe`.
        workspace: where data, store and ledger are.
        progress: told (step, steps, loss and speed) while training and what is done before and after.
        overrides: settings that replace the file's.

    Returns:
        The record of the registered adapter.

    Raises:
        ConfigError: the recipe or the machine's installation cannot do this run; nothing was loaded.
        DataError: the rows cannot be used; nothing was loaded.
        TrainingFailed: the loss is not finite, or the adapter has no effect.
        Interrupted: Ctrl-C or SIGTERM; what was trained so far is saved and the message says how to go on.
        StoreError: the disk did not take a file; nothing is registered.
    """
    recipe = load_recipe(recipe_path, overrides)
    registry = Registry.of(workspace)
    run = begin(recipe.name, recipe_path, workspace, overrides)
    with recorded(run, registry.ledger), listening() as stop:
        registry.ledger.append("run.started", {"run": run.id})
        meet(recipe, recipe_path)
        planned = plan(recipe_path, workspace, run.folder, progress, overrides)
        return _run(Work(planned, run, stop), workspace, progress)


def resume(
    recipe_path: Path | None,
    workspace: Workspace,
    progress: Progress = no_progress,
    run_id: str | None = None,
    overrides: Overrides = (),
) -> AdapterRecord:
    """Go on with the newest unfinished run of a recipe, behind its newest whole checkpoint, and register the adapter.

    Args:
        recipe_path: the recipe; None takes the newest unfinished run of any, with the file it was begun with.
        workspace: where data, store and ledger are.
        progress: as for `finetune`.
        run_id: the run, or the beginning of its id, where it shall not be the newest.
        overrides: settings that replace the file's; without a file those that the run began with.

    Raises:
        BadRequest: there is no such run, it has no whole checkpoint, or another process works on it.
        ConfigError: recipe, data, base or libraries are not those the run began with; it stays as it is.
        Others: as for `finetune`.
    """
    registry = Registry.of(workspace)
    name = load_recipe(recipe_path, overrides).name if recipe_path else None
    found = find_resumable(recipe_path, name, run_id, workspace, registry.ledger)
    if recipe_path:
        found = replace(found, run=replace(found.run, overrides=overrides))
    try:
        with tempfile.TemporaryDirectory() as scratch:
            run = found.run
            planned = plan(run.recipe_file, workspace, Path(scratch), progress, run.overrides)
        require_same(found, inputs_of(planned, found.run.recipe_file))
    except BaseException:
        found.run.lock.release()
        raise
    with recorded(found.run, registry.ledger), listening() as stop:
        step = found.checkpoint.step
        registry.ledger.append("run.resumed", {"run": found.run.id, "step": step})
        discard_unusable(found.run.folder, after=step)
        meet(planned.recipe, found.run.recipe_file)
        work = Work(planned, found.run, stop, found.checkpoint)
        return _run(work, workspace, progress, found.inputs.get("tracking_run"))


def _run(
    work: Work, workspace: Workspace, progress: Progress, tracking_run: str | None = None
) -> AdapterRecord:
    planned, run = work.planned, work.run
    written = {"digest": planned.recipe_digest, "recipe": planned.resolved}
    (run.folder / RECIPE_FILE).write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
    tracked = _tracked(planned, run, tracking_run)
    tracker = start_tracking(planned.recipe.tracking or "none", workspace, tracked)
    how = {"tracking_run": tracker.run_id, "overrides": run.overrides}
    write_inputs(run.folder, inputs_of(planned, run.recipe_file) | how)
    try:
        figures, probes = _train(work, tracker, progress)
        lineage = _lineage(planned, run, figures, tracker.run_id)
        new = NewAdapter(
            name=planned.recipe.name,
            folder=run.folder / ADAPTER,
            base=planned.base,
            contract=planned.contract,
            probes=probes,
            lineage=lineage,
            extras=_extras(run) | reward_files(planned.aids.scorers),
        )
        registry = Registry.of(workspace)
        record = registry.register(new)
        _merge(planned, run, record, registry, progress)
        body = {"run": run.id, "recipe": planned.recipe_digest, "adapter": record.adapter}
        registry.ledger.append("run.finished", body)
    except BaseException as error:
        _show_failure(tracker, error)
        raise
    tracker.finish("FINISHED", {"llmops.adapter": record.adapter})
    return record


def _show_failure(tracker: Tracker, error: BaseException) -> None:
    try:
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt | Interrupted) else "FAILED")
    except Exception as second:  # a tracker that fails too must not hide the first error
        error.add_note(f"the tracker could not end its run ({second})")


def _train(
    work: Work, tracker: Tracker, progress: Progress
) -> tuple[dict[str, float], Probes | RewardProbes]:
    """Train, save, and probe what was saved; the run's figures and the probes."""
    planned, run = work.planned, work.run
    steps = planned.recipe.n_steps or 0
    done = work.resume.step if work.resume else 0
    progress(done, steps, "loading the base model")
    with Curve(run.folder / METRICS_FILE, cut_metrics(run.folder, done), tracker, progress) as curve:
        share(Shared(planned, run.folder / SCRATCH, work.resume.folder if work.resume else None))
        session = _session(work)
        figures = TRAIN[planned.recipe.method.kind](planned.recipe, session, curve.on_step)
        steps = int(figures["n_steps"])
        release_memory()
        progress(steps, steps, "probing the saved adapter")
        probes, effects = measure(planned, session.adapter)
        figures |= effects
        curve.close_with(steps, figures)
    return figures, probes


def _session(work: Work) -> Session[Any]:
    from llmops.train.session import Session
    from llmops.train.steps import Control

    planned, folder = work.planned, work.run.folder
    recipe = planned.recipe
    parent = planned.parent.folder if planned.parent else None
    control = Control(
        recipe.checkpoint, recipe.early_stopping, work.resume.folder if work.resume else None, work.stop
    )
    return Session(
        base=planned.base,
        examples=planned.examples,
        device=planned.device,
        scratch=folder / SCRATCH,
        adapter=folder / ADAPTER,
        parent=parent,
        aids=planned.aids,
        control=control,
    )


def _merge(planned: Plan, run: Run, record: AdapterRecord, registry: Registry, progress: Progress) -> None:
    """Make and store the merged model where the recipe asks for one; the adapter is registered already.

    Raises:
        InvalidEvidence: the merged model does not answer as the adapter does; `llmops merge` may write a wider type.
    """
    wanted = planned.recipe.merge
    if wanted is None:
        return
    from llmops.train.export.match import tolerance_for
    from llmops.train.export.merge import merge_into_store
    from llmops.train.export.source import Source

    source = Source(
        registry, record, registry.verify(record), planned.base, planned.contract, registry.probes(record)
    )
    tolerance = tolerance_for(wanted.dtype, wanted.tolerance_nats)
    merge_into_store(source, run.folder / SCRATCH / "merged", wanted.dtype, tolerance, progress)


def _tracked(planned: Plan, run: Run, tracking_run: str | None) -> TrackedRun:
    made_from = {"base": planned.base.digest, "prompt_contract": planned.contract.digest()}
    if planned.parent:
        made_from["continues"] = planned.parent.record.adapter
    return TrackedRun(
        name=run.id,
        params={**planned.resolved, "digests": {**made_from, "recipe": planned.recipe_digest}},
        tags={"llmops.run": run.id, "llmops.git_sha": run.git.sha or "none" if run.git else "none"},
        dataset_name=planned.examples.snapshot.name,
        dataset_digest=planned.examples.snapshot.digest(),
        goes_on=tracking_run,
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
    names = (RECIPE_FILE, METRICS_FILE, DROPPED_FILE, QUALITY_FILE)
    files = {name: (run.folder / name).read_bytes() for name in names}
    inputs = read_inputs(run.folder) or {}
    files[INPUTS_FILE] = canonical_json({k: v for k, v in inputs.items() if k not in OF_THIS_MACHINE})
    return files | ({"git.diff": run.git.diff} if run.git and run.git.diff else {})
