"""What the processes beside the first one do: take its plan, train with it, and leave. They write nothing.

The first process alone reads the rows, so that all train on the very same ones; base, parent adapter, teacher and
rewards are found by each machine for itself and compared by digest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmops.errors import InvalidEvidence
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.schema import short
from llmops.settings import Workspace
from llmops.train.aids import Aids, find_aids
from llmops.train.interrupt import listening
from llmops.train.methods import TRAIN
from llmops.train.plan import Plan
from llmops.train.ranks import from_first, join, place, require_processes, require_strategy
from llmops.train.recipe import Overrides, Recipe, load_recipe


def meet(recipe: Recipe, where: object) -> None:
    """Meet the processes that train this recipe together; nothing to do for one alone.

    Raises:
        ConfigError: no such device, another number of processes was started, or the strategy does nothing here.
        CouldNotRun: the others cannot be met.
    """
    require_processes(recipe, where)
    if recipe.launch.processes > 1:
        from llmops.train.libraries import quiet_libraries

        quiet_libraries()
        from llmops.train.model import pick_device

        device = pick_device(recipe.device)
        require_strategy(recipe, device, where)
        join(device)


@dataclass(frozen=True)
class Shared:
    """What the first process tells the others: its plan, the folder of the run's checkpoints, the one it resumes."""

    planned: Plan
    scratch: Path
    resume: Path | None


def share(shared: Shared) -> None:
    """Tell the other processes what the first is about to do; each finds a method's aids for itself."""
    from_first(replace(shared, planned=replace(shared.planned, aids=Aids())))


def follow(recipe_path: Path, workspace: Workspace, overrides: Overrides = ()) -> None:
    """Train as one of the processes beside the first, which reads the same recipe.

    Raises:
        ConfigError, CouldNotRun: as `meet`.
        InvalidEvidence: this machine's base is not the first one's, or an adapter was altered.
        TrainingFailed: as in the first process.
    """
    from llmops.train.session import Session
    from llmops.train.steps import Control

    meet(load_recipe(recipe_path, overrides), recipe_path)
    shared: Shared = from_first(None)
    planned = _at_home(shared.planned, workspace, recipe_path)
    recipe = planned.recipe
    with listening() as stop:
        session: Session[Any] = Session(
            base=planned.base,
            examples=planned.examples,
            device=planned.device,
            scratch=shared.scratch,
            adapter=shared.scratch / "unused",  # the first process writes the adapter
            parent=planned.parent.folder if planned.parent else None,
            aids=planned.aids,
            control=Control(recipe.checkpoint, recipe.early_stopping, shared.resume, stop),
        )
        TRAIN[recipe.method.kind](recipe, session, lambda *_: None)


def _at_home(planned: Plan, workspace: Workspace, recipe_path: Path) -> Plan:
    """The plan with this machine's own folders in it, and with its aids."""
    base = resolve_base(planned.base.ref)
    if base.digest != planned.base.digest:
        raise InvalidEvidence(
            f"process {place().rank}: base model {base.ref} is {short(base.digest)} here and "
            f"{short(planned.base.digest)} in the first process; fetch the same files"
        )
    registry = Registry.of(workspace)
    _, aids = find_aids(planned.recipe, base, registry, recipe_path)
    parent = planned.parent and replace(planned.parent, folder=registry.verify(planned.parent.record))
    return replace(planned, base=base, parent=parent, aids=aids)
