"""The adapter that training continues: found by name, verified, and what the new adapter takes over from it.

Reads the registry; loads no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmops.chat import require_same_contract
from llmops.errors import BadRequest, ConfigError
from llmops.records import AdapterRecord
from llmops.registry.adapters import Registry, require_generating
from llmops.registry.bases import Base
from llmops.registry.names import name_state
from llmops.schema import short
from llmops.train.recipe import Lora, Recipe


@dataclass(frozen=True)
class Parent:
    """An adapter whose weights training begins with: its record, and the folder of its verified files."""

    record: AdapterRecord
    folder: Path


def find_parent(reference: str, registry: Registry) -> AdapterRecord:
    """The champion of the public name `reference`; without such a champion the adapter of that reference.

    Raises:
        BadRequest: neither is there.
        InvalidEvidence: a record is gone from the store, or altered.
    """
    champion = name_state(registry, reference).champion_adapter
    return registry.adapter(champion or reference)


def continue_recipe(
    recipe: Recipe, base: Base, registry: Registry, where: Path
) -> tuple[Recipe, Parent | None]:
    """The recipe with what it takes over from the adapter it continues, and that adapter; unchanged without one.

    `continue_from` becomes the adapter's digest: the champion may be another one when the recipe is run again.

    Args:
        recipe: as it was written.
        base: the base model it names.
        registry: where the adapter is.
        where: the recipe's file, for messages.

    Raises:
        ConfigError: the adapter is not there, is one of another base, or has another shape or system prompt than
            the recipe asks for.
        InvalidEvidence: one of its files was altered, or its prompt contract is not the base model's.
    """
    if recipe.continue_from is None:
        return recipe, None
    try:
        record = find_parent(recipe.continue_from, registry)
    except BadRequest as error:
        problem = str(error).removeprefix(f"adapter {recipe.continue_from}: ")
        raise ConfigError(
            f"{where}: continue_from: {recipe.continue_from!r} is no public name with a champion, and as an "
            f"adapter: {problem}"
        ) from error
    if record.base != base.digest:
        raise ConfigError(
            f"{where}: continue_from: {record.model_name} belongs to {record.base_ref} ({short(record.base)}), not to "
            f"base_model {base.ref} ({short(base.digest)}); name that base"
        )
    try:
        require_generating(record)
    except BadRequest as error:
        raise ConfigError(f"{where}: continue_from: {error}") from None
    folder = registry.verify(record)
    contract = registry.contract(record)
    require_same_contract(contract, base.contract, f"adapter {record.model_name}")
    if "system" in recipe.model_fields_set and recipe.system != contract.system:
        raise ConfigError(
            f"{where}: system: {recipe.system!r} is not that of {record.model_name}, which this recipe continues "
            f"({contract.system!r}); leave it out"
        )
    lora = _shape(recipe, Parent(record, folder), base, where)
    update = {"continue_from": record.adapter, "system": contract.system, "lora": lora}
    return recipe.model_copy(update=update), Parent(record, folder)


def _shape(recipe: Recipe, parent: Parent, base: Base, where: Path) -> Lora:
    """The parent's shape as a recipe says it.

    Raises:
        ConfigError: the recipe asks for another shape, and which setting differs.
    """
    from llmops.train.model import adapter_shapes, lora_config, read_lora_config

    config = read_lora_config(parent.folder)
    layers = adapter_shapes(base, config).keys()  # also spells out the names of the layers in `config`
    named = config.target_modules
    modules: Any = named if isinstance(named, str) else tuple(sorted(named))
    theirs = {"r": config.r, "alpha": config.lora_alpha, "dropout": config.lora_dropout}
    theirs |= {"use_rslora": config.use_rslora, "use_dora": config.use_dora}
    if "lora" in recipe.model_fields_set:
        for name, value in theirs.items():
            if getattr(recipe.lora, name) != value:
                raise ConfigError(_differs(where, name, (getattr(recipe.lora, name), value), parent))
        # Layers are named in more than one way, so what the names come to is compared.
        if adapter_shapes(base, lora_config(recipe.lora)).keys() != layers:
            asked = recipe.lora.target_modules
            raise ConfigError(_differs(where, "target_modules", (asked, modules), parent))
    # Not validated: an imported adapter may have a shape that a recipe could not ask for.
    return Lora.model_construct(**theirs, target_modules=modules)


def _differs(where: Path, name: str, values: tuple[object, object], parent: Parent) -> str:
    return (
        f"{where}: lora.{name}: {values[0]!r} is not that of {parent.record.model_name}, which this recipe continues "
        f"({values[1]!r}); leave lora out, or train without continue_from"
    )
