"""Everything about a run that can be known before weights are loaded: `plan` refuses early what would fail late.

Reads the recipe's base (its config and tokenizer), its rows and the workspace's store; writes the list of dropped rows.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmops.chat import Tokenizer
from llmops.errors import ConfigError
from llmops.records import PromptContract
from llmops.registry.adapters import Registry
from llmops.registry.bases import Base, glimpse_base, resolve_base
from llmops.schema import JsonDict, Progress, digest_of
from llmops.settings import Workspace
from llmops.tracking import require_tracker
from llmops.train.account import require_both_kinds, require_looks, require_within_budget, write_account
from llmops.train.aids import Aids, find_aids
from llmops.train.check.inquiry import Inquiry
from llmops.train.check.serving import serving_findings
from llmops.train.examples import read_examples
from llmops.train.gate import gate_of
from llmops.train.libraries import quiet_libraries
from llmops.train.memory.estimate import Scene
from llmops.train.order import n_sequences, n_steps_of
from llmops.train.parent import Parent, continue_recipe
from llmops.train.ranks import require_strategy
from llmops.train.recipe import Distill, EndpointTeacher, Overrides, Recipe, Sft, load_recipe
from llmops.train.rows import Examples, token_lengths
from llmops.train.sanity import Finding, tokenizer_findings


@dataclass(frozen=True)
class Plan:
    """A recipe that can be run: resolved, with its base, contract, rows, and the adapter that it continues."""

    recipe: Recipe
    base: Base
    contract: PromptContract
    examples: Examples[Any]
    parent: Parent | None
    aids: Aids
    device: str
    n_parameters: int  # of the adapter

    @property
    def resolved(self) -> JsonDict:
        """The recipe with every default written out, as it can be run again."""
        found: JsonDict = self.recipe.model_dump(mode="json")
        return found

    @property
    def recipe_digest(self) -> str:
        """Digest of the resolved recipe."""
        return digest_of(self.resolved)

    @property
    def scene(self) -> Scene:
        """What its memory is estimated from."""
        parent = self.parent.folder if self.parent else None
        teacher = self.aids.teacher.base if self.aids.teacher else None
        return Scene(self.recipe, self.base, parent, self.examples.train, self.device, teacher)


@dataclass(frozen=True)
class Desk:
    """What every step of planning works with."""

    where: Path  # the recipe's file
    workspace: Workspace
    folder: Path  # gets the lists of dropped rows
    progress: Progress
    overrides: Overrides = ()
    inquiry: Inquiry = field(default_factory=Inquiry)
    only_looks: bool = False  # fetches no weights, and asks no teacher: rows keep their own answers


def plan(
    recipe_path: Path, workspace: Workspace, folder: Path, progress: Progress, overrides: Overrides = ()
) -> Plan:
    """Check a recipe against its base, its data and the engines that shall serve its adapter.

    Args:
        recipe_path: the YAML file.
        workspace: where data and state are.
        folder: an existing folder that gets `quality.json`, `dropped.jsonl`, and `quarantine.jsonl` if one is dropped.
        progress: told what is being looked at.
        overrides: settings that replace the file's.

    Raises:
        ConfigError: a setting is wrong, does not fit the base or the device's memory, cannot be served, or needs what
            is not installed. Where several things are wrong, the message has them all.
        DataError: a file is missing, a quality check refuses the rows, or more would be dropped than the recipe allows.
        BadRequest: the base, the dataset or the preferences are not there.
        InvalidEvidence: the data's snapshot, or the adapter that is continued, was altered.
    """
    return settle(Desk(recipe_path, workspace, folder, progress, overrides))


def settle(desk: Desk) -> Plan:
    """The plan of the recipe on a desk, its memory looked at; raises as `plan`."""
    from llmops.train.check.memory import is_ample, memory_findings, memory_need

    found = inquire(desk)
    if found is not None and not is_ample(found.scene):
        desk.progress(0, 0, "estimating memory")
        desk.inquiry.note(memory_findings(found.scene, memory_need(found.scene)))
    desk.inquiry.require()
    if found is None:
        raise AssertionError(f"{desk.where}: no plan, and nothing that says why")
    return found


def inquire(desk: Desk) -> Plan | None:
    """The plan of a recipe, or None; what stands in its way, and all else that was found, is in `desk.inquiry`."""
    attempt = desk.inquiry.attempt
    recipe = attempt("recipe", load_recipe, desk.where, desk.overrides)
    if recipe is None:
        return None
    tracking = recipe.tracking or desk.workspace.config.tracking
    attempt("tracking", require_tracker, tracking)
    recipe, device = _on_device(recipe, desk)
    find = glimpse_base if desk.only_looks else resolve_base
    base = attempt("base model", find, recipe.base_model, lambda note: desk.progress(0, 0, note))
    if base is None:
        return None
    registry = Registry.of(desk.workspace)
    continued = attempt("continue_from", continue_recipe, recipe, base, registry, desk.where)
    recipe, parent = continued or (recipe, None)
    aided = attempt("method", find_aids, recipe, base, registry, desk.where)
    recipe, aids = aided or (recipe, Aids())
    n_parameters = _adapter(recipe, base, parent, desk)
    attempt("max_tokens", _require_short, recipe, base, desk.where)
    examples = _rows(recipe, base, registry, desk)
    if device is None or examples is None or n_parameters is None:
        return None
    n_steps = n_steps_of(recipe, n_sequences(recipe, token_lengths(examples.train)))
    resolved = recipe.model_copy(update={"tracking": tracking, "n_steps": n_steps, "n_epochs": None})
    contract = recipe.contract_on(base.contract)
    return Plan(resolved, base, contract, examples, parent, aids, device, n_parameters)


def _on_device(recipe: Recipe, desk: Desk) -> tuple[Recipe, str | None]:
    """The recipe with device and precision chosen, and the device; None if this machine has it not.

    What is refused is still looked at further, as far as it goes: on a CPU.
    """
    attempt = desk.inquiry.attempt
    desk.progress(0, 0, "loading libraries")
    quiet_libraries()
    from llmops.train.model import pick_device, pick_precision, require_means

    device = attempt("device", pick_device, recipe.device)
    assumed = device or "cpu"
    update = {"precision": pick_precision(recipe, assumed), "device": assumed}
    recipe = recipe.model_copy(update=update)
    attempt("means", require_means, recipe, assumed)
    if device is not None and recipe.launch.processes > 1:
        attempt("launch", require_strategy, recipe, device, desk.where)
    return recipe, device


def _adapter(recipe: Recipe, base: Base, parent: Parent | None, desk: Desk) -> int | None:
    """The number of parameters the adapter will have on this base; None if it cannot be made."""
    from llmops.train.model import adapter_shapes, plain_config, planned_config

    config = planned_config(recipe, parent.folder if parent else None)
    desk.inquiry.note(serving_findings(recipe, plain_config(config)))
    shapes = desk.inquiry.attempt("adapter", adapter_shapes, base, config)
    return None if shapes is None else sum(math.prod(shape) for shape in shapes.values())


def _require_short(recipe: Recipe, base: Base, where: Path) -> None:
    """Refuse rows longer than the base can read.

    Raises:
        ConfigError: gives both lengths.
    """
    limit = json.loads((base.path / "config.json").read_text()).get("max_position_embeddings")
    if isinstance(limit, int) and recipe.max_tokens > limit:
        raise ConfigError(
            f"{where}: max_tokens: {recipe.max_tokens} is over the base model's {limit}; lower it"
        )


def _rows(recipe: Recipe, base: Base, registry: Registry, desk: Desk) -> Examples[Any] | None:
    """The recipe's rows, encoded; None if they cannot be read or are too few."""
    from llmops.train.model import load_tokenizer

    contract = recipe.contract_on(base.contract)
    tokenizer: Tokenizer = load_tokenizer(base)
    desk.inquiry.note(tokenizer_findings(base, tokenizer, contract))

    def read() -> Examples[Any]:
        gate = gate_of(recipe, desk.workspace, tokenizer, desk.folder, desk.progress)
        read_as = recipe
        if desk.only_looks or desk.inquiry.errors:  # nobody is asked for a run that is refused anyway
            read_as = _asking_nobody(recipe, desk)
        return read_examples(read_as, desk.where.parent, registry, (tokenizer, contract), gate)

    examples = desk.inquiry.attempt("data", read)
    if examples is None:
        return None
    listing = write_account(examples.dropped, desk.folder)
    before = len(desk.inquiry.errors)
    desk.inquiry.attempt("data", require_within_budget, examples, recipe, listing)
    desk.inquiry.attempt("data", require_both_kinds, examples, recipe)
    desk.inquiry.attempt("data", require_looks, examples, recipe)
    return examples if len(desk.inquiry.errors) == before else None


def _asking_nobody(recipe: Recipe, desk: Desk) -> Recipe:
    """The recipe as its rows are read where no endpoint shall be asked: with their own answers."""
    if isinstance(recipe.method, Distill) and isinstance(recipe.method.teacher, EndpointTeacher):
        what = f"{recipe.method.teacher.model} is not asked: rows are counted with their own answers"
        desk.inquiry.note([Finding("teacher", "ok", what)])
        return recipe.model_copy(update={"method": Sft(kind="sft")})
    return recipe
