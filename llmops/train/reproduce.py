"""Training an adapter again from what its lineage keeps, and saying how near the second comes to the first.

Needs the store and the base model; neither the recipe's file nor the files its rows once stood in. Registers nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmops.chat import CONTRACT_FILE
from llmops.checkpoints import INPUTS_FILE
from llmops.errors import BadRequest, ConfigError
from llmops.manifest import manifest_of, sha256_file
from llmops.records import (
    AdapterRecord,
    Lineage,
    Probes,
    RewardProbes,
)
from llmops.registry.adapters import CONFIG_FILE, WEIGHTS_FILE, NewAdapter, Registry, canonical_folder
from llmops.registry.bases import resolve_base
from llmops.schema import JsonDict, Progress, digest_of, no_progress, short
from llmops.settings import Workspace
from llmops.train.aids import find_aids
from llmops.train.effects import measure
from llmops.train.examples import encode_found, read_again
from llmops.train.libraries import quiet_libraries
from llmops.train.lineage import hardware, installed_packages
from llmops.train.methods import TRAIN
from llmops.train.parent import continue_recipe
from llmops.train.plan import Plan
from llmops.train.probes import effect_nats
from llmops.train.recipe import Recipe
from llmops.train.resume import rows_digest
from llmops.train.run import METRICS_FILE
from llmops.train.scorers import kept_name

MAX_PROBE_CHANGE_FRAC = 0.1
"""How far two trainings of one adapter may lie apart on the probes, as a fraction of what the adapter changes there."""

Grade = Literal["EXACT", "WEIGHTS-EXACT", "EQUIVALENT", "DIVERGED"]


@dataclass(frozen=True)
class Reproduction:
    """How near a second training came: the grade, the first stage that differs, and what else is different here."""

    adapter: str  # name@digest12
    grade: Grade
    differs: str | None  # the first stage that does, with both values; None when nothing does
    again: str | None  # digest of the second adapter; None when it was not trained
    change_nats: (
        float | None
    )  # between both on the probes, a token; None where both are equal or were not compared
    effect_nats: float | None  # of the first adapter on the same probes
    hints: tuple[str, ...] = ()  # packages and hardware that are not those of the first training


@dataclass(frozen=True)
class First:
    """The adapter that was registered: record, lineage, where both lie, and what is different here since."""

    record: AdapterRecord
    lineage: Lineage
    registry: Registry
    hints: tuple[str, ...]


@dataclass
class Comparison:
    """Compares a run's losses with those of an earlier one while it goes on; keeps the first that differ."""

    before: dict[int, float]
    progress: Progress
    first: str | None = field(default=None, init=False)

    def on_step(self, step: int, total: int, figures: dict[str, float]) -> None:
        """Take one step's figures."""
        loss, was = figures["loss"], self.before.get(step)
        if self.first is None and was is not None and was != loss:
            self.first = f"loss of step {step}: {was!r} then, {loss!r} now"
        self.progress(step, total, f"loss {loss:.3f}")


def reproduce(reference: str, workspace: Workspace, progress: Progress = no_progress) -> Reproduction:
    """Train an adapter again from its lineage and compare.

    Args:
        reference: the adapter.
        workspace: where store and ledger are; nothing is registered.
        progress: told how far training is.

    Raises:
        BadRequest: there is no such adapter, it was imported, or several processes trained it.
        InvalidEvidence: its lineage or the rows it was trained on are gone or altered.
        Others: as for `finetune`.
    """
    registry = Registry.of(workspace)
    record = registry.adapter(reference)
    lineage = registry.lineage(record)
    if lineage.origin != "trained":
        raise BadRequest(f"adapter {record.model_name}: was imported, so nothing says how it was trained")
    n_processes = lineage.recipe.get("launch", {}).get("processes", 1)
    if n_processes != 1:
        raise BadRequest(
            f"adapter {record.model_name}: {n_processes} processes trained it together, and one alone sums in another "
            "order; run its recipe again to compare"
        )
    kept = _lineage_files(registry, record)
    quiet_libraries()
    progress(0, 0, "reading the lineage")
    place = kept if kept and any(kept.glob(kept_name("*"))) else workspace.root
    planned, differs = _plan_again(record, lineage, registry, place, progress)
    differs = differs or _first_different_input(planned, lineage, kept)
    hints = tuple(_hints(lineage, planned.device))
    if differs:
        return Reproduction(record.model_name, "DIVERGED", differs, None, None, None, hints)
    with tempfile.TemporaryDirectory(prefix="llmops-reproduce-") as scratch:
        comparison = Comparison(_losses(kept), progress)
        folder = _train(planned, Path(scratch), comparison)
        return _graded(First(record, lineage, registry, hints), planned, folder, comparison.first)


def _lineage_files(registry: Registry, record: AdapterRecord) -> Path | None:
    """Folder of the files kept beside the adapter's lineage, verified."""
    events = [e for e in registry.ledger.events("adapter.registered") if e.body["adapter"] == record.adapter]
    digest = events[-1].body.get("lineage_files") if events else None
    return registry.store.verify("lineage_files", str(digest)) if digest else None


def _losses(kept: Path | None) -> dict[int, float]:
    lines = (kept / METRICS_FILE).read_text().splitlines() if kept else []
    found = [json.loads(line) for line in lines]
    return {line["step"]: line["loss"] for line in found if "loss" in line}


def _plan_again(
    record: AdapterRecord, lineage: Lineage, registry: Registry, place: Path, progress: Progress
) -> tuple[Plan, str | None]:
    """The run as its lineage spells it, over the rows that were stored; and what of it is not there any more.

    Reward functions are looked for in `place`: where their files are kept, or where the recipe's paths may lead.
    """
    from llmops.train.model import load_tokenizer, pick_device, require_means

    where = place / record.model_name
    recipe, device = _recipe(lineage), str(lineage.recipe.get("device", "auto"))
    try:
        device = pick_device(device)
    except ConfigError:
        device = pick_device("auto")
    require_means(recipe, device)
    base = resolve_base(recipe.base_model, lambda note: progress(0, 0, note))
    recipe, parent = continue_recipe(recipe, base, registry, where)
    recipe, aids = find_aids(recipe.model_copy(update={"device": device}), base, registry, where)
    contract = recipe.contract_on(base.contract)
    encoder = (load_tokenizer(base), contract)
    examples = encode_found(read_again(lineage, recipe, registry), recipe, encoder, progress)
    planned = Plan(
        recipe=recipe,
        base=base,
        contract=contract,
        examples=examples,
        parent=parent,
        aids=aids,
        device=device,
        n_parameters=0,
    )
    if base.digest != record.base:
        return planned, f"base: {short(record.base)} then, {short(base.digest)} now"
    if contract.digest() != record.prompt_contract:
        was = short(record.prompt_contract)
        return planned, f"prompt contract: {was} then, {short(contract.digest())} now"
    return planned, None


def _recipe(lineage: Lineage) -> Recipe:
    taken_over = ("lora", "system") if lineage.continues else ()
    return Recipe.model_validate({k: v for k, v in lineage.recipe.items() if k not in taken_over})


def _first_different_input(planned: Plan, lineage: Lineage, kept: Path | None) -> str | None:
    """The first of data rows and encoded rows that is not as it was."""
    names = ("train", "held_out")
    was, now = ({n: counts.get(n, 0) for n in names} for counts in (lineage.n_rows, planned.examples.n_rows))
    if was != now:
        return f"data rows: {was} then, {now} now"
    inputs: JsonDict = (
        json.loads((kept / INPUTS_FILE).read_text()) if kept and (kept / INPUTS_FILE).is_file() else {}
    )
    digest = rows_digest(planned.examples)
    if inputs.get("rows", digest) != digest:
        return f"encoded rows: {short(inputs['rows'])} then, {short(digest)} now"
    return None


def _hints(lineage: Lineage, device: str) -> Iterator[str]:
    """Packages and hardware that are not as they were, those that shape numbers first."""
    now: dict[str, str] = installed_packages()
    first = ("torch", "transformers", "peft", "trl", "accelerate")
    for name in (*first, *sorted(lineage.packages.keys() - set(first))):
        if lineage.packages.get(name) != now.get(name):
            yield f"{name} {lineage.packages.get(name)} then, {now.get(name)} now"
    here = hardware(device)
    for name in ("device", "accelerator", "processor", "n_threads", "python", "system"):
        if lineage.hardware.get(name) != here.get(name):
            yield f"{name} {lineage.hardware.get(name)} then, {here.get(name)} now"


def _train(planned: Plan, scratch: Path, comparison: Comparison) -> Path:
    """Train; returns the PEFT folder."""
    from llmops.train.session import Session
    from llmops.train.steps import Control

    session: Session[Any] = Session(
        base=planned.base,
        examples=planned.examples,
        device=planned.device,
        scratch=scratch / "trainer",
        adapter=scratch / "adapter",
        parent=planned.parent.folder if planned.parent else None,
        aids=planned.aids,
        control=Control(early_stopping=planned.recipe.early_stopping),
    )
    recipe = planned.recipe.model_copy(update={"report_to": ()})  # shown where the first one was
    TRAIN[recipe.method.kind](recipe, session, comparison.on_step)
    return session.adapter


def _graded(first: First, planned: Plan, folder: Path, differs: str | None) -> Reproduction:
    """Compare what was trained with what is stored: digest, then weights, then what both say on the probes."""
    probes, _ = measure(planned, folder)
    record, registry = first.record, first.registry
    new = NewAdapter(record.name, folder, planned.base, planned.contract, probes, first.lineage, {})
    canonical = canonical_folder(new, folder.parent / "canonical")
    again = digest_of(manifest_of(canonical))
    if again == record.adapter:
        return Reproduction(record.model_name, "EXACT", None, again, None, None, first.hints)
    stored = registry.verify(record)
    if sha256_file(canonical / WEIGHTS_FILE) == sha256_file(stored / WEIGHTS_FILE):
        what = _different_file(stored, canonical)
        return Reproduction(record.model_name, "WEIGHTS-EXACT", what, again, None, None, first.hints)
    change, effect = _distance(registry, record, probes)
    grade: Grade = "EQUIVALENT" if change <= MAX_PROBE_CHANGE_FRAC * effect else "DIVERGED"
    return Reproduction(
        record.model_name, grade, differs or "the saved weights", again, change, effect, first.hints
    )


def _different_file(stored: Path, canonical: Path) -> str:
    """The first file but the weights that is not the same, and for the configuration the first setting in it."""
    before, after = (json.loads((folder / CONFIG_FILE).read_text()) for folder in (stored, canonical))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            return f"{CONFIG_FILE}: {name} {before.get(name)!r} then, {after.get(name)!r} now"
    return CONTRACT_FILE


def _distance(registry: Registry, record: AdapterRecord, now: Probes | RewardProbes) -> tuple[float, float]:
    """Mean difference of two trainings on the probes, and by how much the first one changes them."""
    if isinstance(now, RewardProbes):
        before = registry.store.get_record(RewardProbes, record.probes)
        spread = max(before.rewards) - min(before.rewards)
        pairs = list(zip(before.rewards, now.rewards, strict=True))
        return sum(abs(a - b) for a, b in pairs) / len(pairs), spread
    stored = registry.probes(record)
    return effect_nats(Probes(stored.token_ids, stored.adapter_logprobs, now.adapter_logprobs)), effect_nats(
        stored
    )
