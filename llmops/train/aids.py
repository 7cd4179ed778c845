"""What a method needs besides base and rows: a teacher, or rewards; found and verified before any weights load.

Reads the registry, base models' files and users' reward functions; loads no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmops.chat import require_same_contract
from llmops.errors import BadRequest, ConfigError, InvalidEvidence
from llmops.records import AdapterRecord
from llmops.registry.adapters import Registry, require_generating
from llmops.registry.bases import Base, resolve_base
from llmops.schema import short
from llmops.train.parent import find_parent
from llmops.train.recipe import AdapterReward, Distill, Grpo, ModelTeacher, PythonReward, Recipe
from llmops.train.scorers import ModelScorer, Scorer, load_scorer


@dataclass(frozen=True)
class Teacher:
    """A model to learn from: its base, and the verified folder of its adapter (None: the base itself)."""

    base: Base
    adapter: Path | None


@dataclass(frozen=True)
class Aids:
    """What a method uses besides base and rows; most use nothing."""

    teacher: Teacher | None = None
    scorers: tuple[Scorer, ...] = ()


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
    if isinstance(recipe.method, Distill) and isinstance(recipe.method.teacher, ModelTeacher):
        named, teacher = _teacher(recipe.method.teacher, base, registry, where)
        return _with_method(recipe, teacher=named), Aids(teacher)
    if isinstance(recipe.method, Grpo):
        found = [_scorer(i, recipe, base, registry, where) for i in range(len(recipe.method.rewards))]
        pinned = _with_method(recipe, rewards=tuple(named for named, _ in found))
        return pinned, Aids(scorers=tuple(scorer for _, scorer in found))
    return recipe, Aids()


def _with_method(recipe: Recipe, **settings: object) -> Recipe:
    return recipe.model_copy(update={"method": recipe.method.model_copy(update=settings)})


def _scorer(
    i: int, recipe: Recipe, base: Base, registry: Registry, where: Path
) -> tuple[PythonReward | AdapterReward, Scorer]:
    assert isinstance(recipe.method, Grpo)
    named, place = recipe.method.rewards[i], f"{where}: method.rewards[{i}]"
    if isinstance(named, PythonReward):
        return load_scorer(named, where.parent, place)
    try:
        record = registry.adapter(named.adapter)
    except BadRequest as error:
        raise ConfigError(f"{place}.adapter: {error}") from error
    if record.kind != "reward":
        raise ConfigError(
            f"{place}.adapter: {record.model_name} writes text and gives no rewards; name one of method reward"
        )
    theirs = base if record.base == base.digest else resolve_base(record.base_ref)
    if theirs.digest != record.base:
        raise ConfigError(
            f"{place}.adapter: {record.model_name}: its base {record.base_ref} has changed; restore it"
        )
    try:
        require_same_contract(theirs.contract, base.contract, f"{place}.adapter: {record.model_name}")
    except InvalidEvidence as error:
        raise ConfigError(str(error)) from None
    scorer = ModelScorer(record.model_name, named.weight, theirs, registry.verify(record), recipe.device)
    return named.model_copy(update={"adapter": record.adapter}), scorer


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
            "teacher of the same family, or serve it and learn its answers (teacher: {kind: endpoint, ...})"
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
