"""Going on with a run that did not finish: which one, behind which checkpoint, and whether it still is the same run.

A run is gone on with only if its recipe (all that shapes the result), data, base, prompt contract and libraries are
those it began with: anything else would give an adapter that no unbroken run could have given.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmops import __version__
from llmops.checkpoints import INPUTS_FILE, Checkpoint, newest_whole, resumable_runs
from llmops.errors import BadRequest, ConfigError
from llmops.ledger import Ledger
from llmops.schema import JsonDict, short
from llmops.settings import Workspace
from llmops.tracking import flatten
from llmops.train.plan import Plan
from llmops.train.ranks import place
from llmops.train.rows import Example, Examples, Judged, Pair, TrainRow
from llmops.train.run import Run, take_up

SHAPELESS = ("checkpoint", "tracking", "report_to")
"""Settings of a recipe that change nothing about the adapter: they may differ when a run is gone on with."""
OF_THIS_MACHINE = ("recipe_file", "tracking_run")
"""Parts of a run's inputs that mean nothing elsewhere."""
_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "torchao")


@dataclass(frozen=True)
class Resumed:
    """A run that was taken up again, the checkpoint to go on behind, and what the run was made from."""

    run: Run
    checkpoint: Checkpoint
    inputs: JsonDict


def inputs_of(planned: Plan, recipe_file: Path) -> JsonDict:
    """What a run is made from, as its folder keeps it and as resuming compares it."""
    return {
        "recipe_file": str(recipe_file.resolve()),
        "recipe": {k: v for k, v in planned.resolved.items() if k not in SHAPELESS},
        "data": planned.examples.snapshot.digest(),
        "rows": rows_digest(planned.examples),
        "base": planned.base.digest,
        "prompt_contract": planned.contract.digest(),
        "libraries": _libraries(),
        "n_processes": place().world,
    }


def rows_digest(examples: Examples[Any]) -> str:
    """Digest of the rows as the trainer sees them: token ids and what is scored, in order, trained on and held out."""
    digest = hashlib.sha256()
    for part in (examples.train, examples.held_out):
        digest.update(f"{len(part)}\n".encode())
        for row in part:
            for sequence in _sequences(row):
                digest.update(f"{len(sequence)}\n".encode())
                digest.update(array("i", sequence).tobytes())
    return digest.hexdigest()


def _sequences(row: TrainRow) -> tuple[Sequence[int], ...]:
    if isinstance(row, Example):
        return row.encoded.input_ids, row.encoded.loss_mask
    if isinstance(row, Pair):
        return row.prompt_ids, row.chosen_ids, row.rejected_ids
    if isinstance(row, Judged):
        return row.prompt_ids, row.answer_ids, (int(row.good),)
    return (row.token_ids,)


def _libraries() -> dict[str, str]:
    found = {"llmops": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_inputs(folder: Path, inputs: JsonDict) -> None:
    """Keep what a run is made from in its folder."""
    draft = folder / f"{INPUTS_FILE}.draft"
    draft.write_text(json.dumps(inputs, indent=1, sort_keys=True) + "\n")
    draft.replace(folder / INPUTS_FILE)


def find_resumable(
    recipe_file: Path | None, name: str | None, run: str | None, workspace: Workspace, ledger: Ledger
) -> Resumed:
    """Take up the newest run that can be gone on with.

    Args:
        recipe_file: the recipe's file; None takes the one the run was begun with.
        name: the recipe's name; None takes a run of any recipe.
        run: the id of the run, or its beginning; None takes the newest.
        workspace: where runs lie.
        ledger: says which have finished.

    Raises:
        BadRequest: there is none, or another process works on it.
    """
    damaged = None
    for candidate in resumable_runs(workspace, ledger):
        if run and not candidate.run.startswith(run):
            continue
        if name is not None and candidate.inputs["recipe"]["name"] != name:
            continue
        taken = take_up(candidate.folder, recipe_file or Path(candidate.inputs["recipe_file"]), workspace)
        taken = replace(taken, overrides=tuple((n, v) for n, v in candidate.inputs.get("overrides", ())))
        if checkpoint := newest_whole(candidate.folder):
            return Resumed(taken, checkpoint, candidate.inputs)
        taken.lock.release()
        damaged = damaged or candidate.run
    if damaged:
        raise BadRequest(
            f"--resume: no checkpoint of run {damaged} is whole; run the recipe without --resume"
        )
    which = (f" of {name}" if name else "") + (f" called {run}..." if run else "")
    raise BadRequest(
        f"--resume: no unfinished run{which} with a checkpoint is in {workspace.runs}; run the recipe without --resume "
        "(`llmops status` shows the runs that can be gone on with)"
    )


def require_same(resumed: Resumed, now: JsonDict) -> None:
    """Refuse to go on with a run that was made from something else.

    Raises:
        ConfigError: names the first difference, with both values.
    """
    before, after = (flatten({k: v for k, v in i.items() if k in now}) for i in (resumed.inputs, now))
    for name in sorted(before.keys() | after.keys()):
        was, is_now = before.get(name, "nothing"), after.get(name, "nothing")
        if name != "recipe_file" and was != is_now:
            if name in ("data", "rows", "base", "prompt_contract"):
                was, is_now = short(was), short(is_now)
            raise ConfigError(
                f"--resume: run {resumed.run.id} began with {name} {was}, and it is {is_now} now; put it back, or run "
                "the recipe without --resume"
            )
