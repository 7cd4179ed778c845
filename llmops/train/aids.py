"""What a method needs besides base and rows: the teacher it learns from, found and verified before any weights load.

Reads the registry and base models' files; loads no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmops.errors import BadRequest, ConfigError
from llmops.records import AdapterRecord
from llmops.registry.adapters import Registry, require_generating
from llmops.registry.bases import Base, resolve_base
from llmops.schema import short
from llmops.train.parent import find_parent
from llmops.train.recipe import Distill, ModelTeacher, Recipe


@dataclass(frozen=True)
class Teacher:
    """A model to learn from: its base, and the verified folder of its adapter (None: the base itself)."""

    base: Base
    adapter: Path | None


@dataclass(frozen=True)
class Aids:
    """What a method uses besides base and rows; most use nothing."""

    teacher: Teacher | None = None


def find_aids(recipe: Recipe, base: Base, registry: Registry, where: Path) -> tuple[Recipe, Aids]:
    """What the recipe's method needs, and the recipe with names replaced by digests, as it can be run again.

    Args:
        recipe: as it was written.
        base: the base it trains on.
        registry: where adapters are.
        where: the recipe's file, for messages.

    Raises:
        ConfigError: something that is named is not there, or does not fit the base.
        InvalidEvidence: an adapter's files were altered.
    """
    if isinstance(recipe.method, Distill):
        named, teacher = _teacher(recipe.method.teacher, base, registry, where)
        method = recipe.method.model_copy(update={"teacher": named})
        return recipe.model_copy(update={"method": method}), Aids(teacher)
    return recipe, Aids()


def _teacher(
    named: ModelTeacher, base: Base, registry: Registry, where: Path
) -> tuple[ModelTeacher, Teacher]:
    place = f"{where}: method.teacher"
    record = _adapter(named.adapter, registry, f"{place}.adapter") if named.adapter else None
    reference = named.base_model or (record.base_ref if record else base.ref)
    try:
        found = base if reference == base.ref else resolve_base(reference)
    except BadRequest as error:
        raise ConfigError(f"{place}.base_model: {error}") from error
    if record is not None and record.base != found.digest:
        raise ConfigError(
            f"{place}.adapter: {record.model_name} belongs to {record.base_ref} ({short(record.base)}), not to "
            f"{found.ref} ({short(found.digest)}); name that base"
        )
    if found.contract.tokenizer_sha256 != base.contract.tokenizer_sha256:
        raise ConfigError(
            f"{place}: {found.ref} has another tokenizer than {base.ref}, so their tokens cannot be compared; give a "
            "teacher of the same family, or learn its answers: write them to a file and use method sft"
        )
    update = {"base_model": found.ref, "adapter": record.adapter if record else None}
    folder = registry.verify(record) if record else None
    return named.model_copy(update=update), Teacher(found, folder)


def _adapter(reference: str, registry: Registry, place: str) -> AdapterRecord:
    try:
        record = find_parent(reference, registry)
        require_generating(record)
    except BadRequest as error:
        raise ConfigError(f"{place}: {error}") from error
    return record
