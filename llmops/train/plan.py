"""Everything about a run that can be known before weights are loaded: `plan` refuses early what would fail late.

Reads the recipe's base (its config and tokenizer), its rows and the workspace's store; writes the list of dropped rows.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmops.engines.servability import refusals
from llmops.errors import ConfigError
from llmops.records import PromptContract
from llmops.registry.adapters import Registry
from llmops.registry.bases import Base, resolve_base
from llmops.schema import JsonDict, Progress, digest_of
from llmops.settings import Workspace
from llmops.tracking import require_tracker
from llmops.train.account import require_both_kinds, require_looks, require_within_budget, write_account
from llmops.train.aids import Aids, find_aids
from llmops.train.examples import read_examples
from llmops.train.gate import gate_of
from llmops.train.libraries import quiet_libraries
from llmops.train.order import n_sequences, n_steps_of
from llmops.train.parent import Parent, continue_recipe
from llmops.train.recipe import Overrides, Recipe, Reward, load_recipe
from llmops.train.rows import Examples, token_lengths


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
        ConfigError: a setting is wrong, does not fit the base, cannot be served, or needs what is not installed.
        DataError: a file is missing, a quality check refuses the rows, or more would be dropped than the recipe allows.
        BadRequest: the base, the dataset or the preferences are not there.
        InvalidEvidence: the data's snapshot, or the adapter that is continued, was altered.
    """
    recipe = load_recipe(recipe_path, overrides)
    tracking = recipe.tracking or workspace.config.tracking
    require_tracker(tracking)
    progress(0, 0, "loading libraries")
    quiet_libraries()
    from llmops.train.model import load_tokenizer, pick_device, pick_precision, require_means

    device = pick_device(recipe.device)
    recipe = recipe.model_copy(update={"precision": pick_precision(recipe, device)})
    require_means(recipe, device)
    base = resolve_base(recipe.base_model, lambda note: progress(0, 0, note))
    registry = Registry.of(workspace)
    recipe, parent = continue_recipe(recipe, base, registry, recipe_path)
    recipe, aids = find_aids(recipe.model_copy(update={"device": device}), base, registry, recipe_path)
    n_parameters = _require_fit(recipe, base, parent, recipe_path)
    contract = recipe.contract_on(base.contract)
    tokenizer = load_tokenizer(base)
    gate = gate_of(recipe, workspace, tokenizer, folder, progress)
    examples = read_examples(recipe, recipe_path.parent, registry, (tokenizer, contract), gate)
    require_within_budget(examples, recipe, write_account(examples.dropped, folder))
    require_both_kinds(examples, recipe)
    require_looks(examples, recipe)
    n_steps = n_steps_of(recipe, n_sequences(recipe, token_lengths(examples.train)))
    resolved = recipe.model_copy(
        update={"tracking": tracking, "device": device, "n_steps": n_steps, "n_epochs": None}
    )
    return Plan(resolved, base, contract, examples, parent, aids, device, n_parameters)


def _require_fit(recipe: Recipe, base: Base, parent: Parent | None, where: Path) -> int:
    """The number of parameters the adapter will have on this base.

    Raises:
        ConfigError: the adapter could not be served, has layers the base lacks, or rows longer than the base can read.
    """
    from llmops.train.model import adapter_shapes, plain_config, planned_config

    config = planned_config(recipe, parent.folder if parent else None)
    # A reward model is never served.
    reasons = (
        []
        if isinstance(recipe.method, Reward)
        else refusals(plain_config(config), merged=recipe.merge is not None)
    )
    if reasons:
        raise ConfigError(f"{where}: the adapter could not be served: {'; '.join(reasons)}")
    limit = json.loads((base.path / "config.json").read_text()).get("max_position_embeddings")
    if isinstance(limit, int) and recipe.max_tokens > limit:
        raise ConfigError(
            f"{where}: max_tokens: {recipe.max_tokens} is over the base model's {limit}; lower it"
        )
    shapes = adapter_shapes(base, config)
    return sum(math.prod(shape) for shape in shapes.values())
