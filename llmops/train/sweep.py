"""`sweep`: Optuna's search over the ranges a recipe declares. Every trial is a run of its own, like any other.

A trial is `llmops finetune RECIPE --set NAME=VALUE ...` in a process of its own: it has a run folder, shows in the
tracker and registers its adapter. What was tried lies in `.llmops/optuna.db`; a search that was ended goes on from
there, and draws the values it would have drawn. The best adapter is registered once more at the end, as the newest of
its name.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from llmops.errors import BadRequest, ConfigError, CouldNotRun
from llmops.registry.adapters import Registry
from llmops.schema import digest_of, short
from llmops.settings import Workspace
from llmops.tracking import tag_run
from llmops.train.recipe import Range, Recipe, Sweep, load_recipe, set_words

DATABASE = "optuna.db"
FINETUNE = (sys.executable, "-P", "-m", "llmops.cli", "finetune")
_ADAPTER, _ERROR = "adapter", "error"  # what a trial keeps besides its values


@dataclass(frozen=True)
class Trial:
    """One trial: its number, what was set, and what it came to (a figure and an adapter, or why there is none)."""

    number: int
    settings: dict[str, Any]
    figure: float | None
    adapter: str | None
    error: str | None

    @property
    def words(self) -> tuple[str, ...]:
        """The settings as `--set` options."""
        return set_words(tuple(self.settings.items()))


@dataclass(frozen=True)
class Search:
    """A search as far as it has come: its name in the tracker and the database, its trials, the best of them."""

    name: str
    trials: tuple[Trial, ...]
    best: Trial


OnTrial = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Hunt:
    """A search under way: the recipe it varies, what it may vary, where it runs, and Optuna's study."""

    path: Path
    recipe: Recipe
    sweep: Sweep
    workspace: Workspace
    study: Any

    @property
    def best(self) -> Trial | None:
        """The trial with the best figure so far."""
        done = [trial for trial in _trials(self.study) if trial.figure is not None]
        sign = 1 if self.sweep.direction == "minimize" else -1
        return min(done, key=lambda t: sign * (t.figure or 0.0), default=None)


def sweep(recipe_path: Path, workspace: Workspace, n_trials: int | None, on_trial: OnTrial) -> Search:
    """Search until the recipe's number of trials (or `n_trials`) has ended with a figure; then name the best.

    Args:
        recipe_path: a recipe with a `sweep` block.
        workspace: where trials run.
        n_trials: instead of the recipe's own.
        on_trial: told (trials done, trials wanted, a note).

    Raises:
        ConfigError: the recipe declares no search, a value in its ranges is no setting's, or Optuna is missing.
        BadRequest: its figure is not one that runs end with.
        CouldNotRun: no trial ended with a figure.
    """
    hunt = _begin(recipe_path, workspace)
    wanted = n_trials or hunt.sweep.n_trials
    _give_up_running(hunt.study)
    while max(_n_done(hunt.study)) < wanted:
        on_trial(_n_done(hunt.study)[0], wanted, _note(hunt))
        trial = _ask(hunt)
        if trial is None:
            break
        _run_trial(hunt, trial)
    trials, best = _trials(hunt.study), hunt.best
    if best is None:
        last = trials[-1].error if trials else "none was tried"
        raise CouldNotRun(
            f"{recipe_path}: sweep: none of {len(trials)} trials gave a figure; the last: {last}"
        )
    on_trial(_n_done(hunt.study)[0], wanted, _note(hunt))
    if best.adapter is not None:
        Registry.of(workspace).make_newest(best.adapter)
    return Search(hunt.study.study_name, trials, best)


def _begin(recipe_path: Path, workspace: Workspace) -> _Hunt:
    """Open the search's study, after its ranges were tried on the recipe: better refused now than after hours."""
    recipe = load_recipe(recipe_path)
    if recipe.sweep is None:
        raise ConfigError(f"{recipe_path}: declares no sweep; add `sweep: {{ranges: ...}}`")
    for name, values in recipe.sweep.ranges.items():
        for value in values.ends:
            load_recipe(recipe_path, ((name, value),))
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "sweep: needs Optuna, which is not installed; pip install 'llmops[sweep]'"
        ) from None
    optuna.logging.set_verbosity(logging.ERROR)
    declared = recipe.sweep.model_dump(mode="json", exclude={"n_trials"})
    digest = digest_of({"recipe": recipe.model_dump(mode="json"), "sweep": declared})
    study = optuna.create_study(
        storage=f"sqlite:///{workspace.state / DATABASE}",
        study_name=f"{recipe.name}@{short(digest)}",
        direction=recipe.sweep.direction,
        load_if_exists=True,
    )
    return _Hunt(recipe_path, recipe, recipe.sweep, workspace, study)


def _give_up_running(study: Any) -> None:
    """Trials of a search that was ended in their middle are tried again, with the same values."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def _n_done(study: Any) -> tuple[int, int]:
    """Trials that ended with a figure, and trials that ended without."""
    trials = _trials(study)
    n_failed = sum(trial.error is not None for trial in trials)
    return len(trials) - n_failed, n_failed


def _ask(hunt: _Hunt) -> Any | None:
    """The next trial with its values drawn; None when a grid is used up."""
    from optuna.samplers import RandomSampler, TPESampler

    n_ended = len(_trials(hunt.study))
    if hunt.sweep.sampler == "grid":
        combinations = _combinations(hunt.sweep)
        if n_ended >= len(combinations):
            return None
        if n_ended == 0:
            for params in combinations:
                hunt.study.enqueue_trial(params, skip_if_exists=True)
    # A sampler of its own for each trial: a search that is taken up again draws what it would have drawn.
    kind = TPESampler if hunt.sweep.sampler == "tpe" else RandomSampler
    hunt.study.sampler = kind(seed=(hunt.recipe.seed * 100_003 + n_ended) % 2**32)
    return hunt.study.ask({name: _distribution(values) for name, values in hunt.sweep.ranges.items()})


def _combinations(sweep: Sweep) -> list[dict[str, Any]]:
    """Every combination of a grid's values, as Optuna keeps them."""
    columns: list[list[Any]] = []
    for values in sweep.ranges.values():
        if values.low is None or values.high is None:
            columns.append([json.dumps(choice) for choice in values.choices or ()])
        else:
            step = values.step or 1
            n_steps = int((values.high - values.low) / step + 1e-9)
            columns.append([values.low + i * step for i in range(n_steps + 1)])
    return [dict(zip(sweep.ranges, row, strict=True)) for row in product(*columns)]


def _distribution(values: Range) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    low, high, step = values.low, values.high, values.step
    if low is None or high is None:
        # Optuna keeps plain values alone; lists and mappings travel as their JSON.
        return CategoricalDistribution([json.dumps(choice) for choice in values.choices or ()])
    if isinstance(low, int) and isinstance(high, int) and not isinstance(step, float):
        return IntDistribution(low, high, log=values.log, step=step or 1)
    return FloatDistribution(low, high, log=values.log, step=step)


def _settings(params: dict[str, Any]) -> dict[str, Any]:
    return {name: json.loads(v) if isinstance(v, str) else v for name, v in params.items()}


def _run_trial(hunt: _Hunt, trial: Any) -> None:
    """Run one trial in a process of its own and tell the study what it came to."""
    from optuna.trial import TrialState

    name = hunt.study.study_name
    log = hunt.workspace.logs / "sweep" / f"{name}-{trial.number:04d}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [*FINETUNE, str(hunt.path), "--json"]
    with log.open("w") as output:
        words = [*command, *set_words(tuple(_settings(trial.params).items()))]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=output, text=True, check=False)
    if done.returncode:
        trial.set_user_attr(_ERROR, _last_error(log) or f"ended with code {done.returncode}; see {log}")
        hunt.study.tell(trial, state=TrialState.FAIL)
        return
    answer = json.loads(done.stdout)
    figures, metric = answer["lineage"]["metrics"], hunt.sweep.metric
    if metric not in figures:
        known = ", ".join(sorted(figures))
        raise BadRequest(f"{hunt.path}: sweep.metric: {metric} is no figure of these runs; known: {known}")
    trial.set_user_attr(_ADAPTER, answer["adapter"]["adapter"])
    hunt.study.tell(trial, figures[metric])
    if run := answer["lineage"]["tracking_run"]:
        tag_run(hunt.workspace, run, {"llmops.sweep": name, "llmops.trial": str(trial.number)})


def _last_error(log: Path) -> str | None:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else None


def _trials(study: Any) -> tuple[Trial, ...]:
    found = []
    for trial in study.get_trials(deepcopy=False):
        kept = trial.user_attrs
        if _ADAPTER in kept or _ERROR in kept:
            settings = _settings(trial.params)
            found.append(Trial(trial.number, settings, trial.value, kept.get(_ADAPTER), kept.get(_ERROR)))
    return tuple(found)


def _note(hunt: _Hunt) -> str:
    best = hunt.best
    if best is None:
        return "first trial"
    said = " ".join(word for word in best.words if word != "--set")
    return f"best {hunt.sweep.metric} {best.figure:.4g} with {said}"
