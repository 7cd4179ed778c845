"""Claims about what an adapter is and how it came to be: its files, its data, its training.

Reads the adapter's record, lineage and what lies beside it, and the snapshots of its data.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from llmops.card.claim import Claim, one_line
from llmops.errors import LlmopsError
from llmops.manifest import sha256_file
from llmops.records import AdapterRecord, DatasetSnapshot, Lineage, PreferenceSnapshot
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.schema import short

DROPPED_FILE, QUALITY_FILE = "dropped.jsonl", "quality.json"
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes")
MAX_REASONS = 12
_FRONT = re.compile(r"\A---\n(?P<yaml>.*?)\n---\n", re.DOTALL)


def model_claims(registry: Registry, record: AdapterRecord) -> Iterator[Claim]:
    """What the adapter is: its files, base, prompt contract and effect.

    Raises:
        InvalidEvidence: a file or record of it is missing or was altered.
    """
    registry.verify(record)
    contract, lineage = registry.contract(record), registry.lineage(record)
    kind = "adapter"
    yield Claim(
        "Model", f"Files of `{record.model_name}`, LoRA of rank {record.lora_rank}", kind, record.adapter
    )
    yield Claim("Model", f"Belongs to base model '{_base_name(record.base_ref)}'", "base", record.base)
    yield from _base_licence(record)
    ends = ", ".join(str(token) for token in contract.eos_token_ids)
    yield Claim("Model", f"An answer ends with token {ends}", "contract", record.prompt_contract)
    system = f'"{one_line(contract.system)}"' if contract.system else "none"
    yield Claim("Model", f"Default system prompt: {system}", "contract", record.prompt_contract)
    if "effect_nats" in lineage.metrics:
        effect = f"Changes the base by {lineage.metrics['effect_nats']:.3g} nats a token on its probes"
        yield Claim("Model", effect, "lineage", record.lineage)


def _base_name(ref: str) -> str:
    """The base as strangers may know it: of a folder on this machine its last name."""
    path = Path(ref)
    return one_line(path.name if path.is_absolute() or ref.startswith((".", "~")) else ref)


def _base_licence(record: AdapterRecord) -> Iterator[Claim]:
    """The licence the base's own model card states, where that card is on this machine."""
    try:
        base = resolve_base(record.base_ref)
    except LlmopsError:
        return  # the base is not here: nothing is known, and nothing claimed
    path = base.path / "README.md"
    if base.digest == record.base and (licence := card_licence(path)):
        text = f"The base model's own card states its licence: {licence}"
        yield Claim("Model", text, "base card", sha256_file(path))


def card_licence(path: Path) -> str | None:
    """The `license` in a model card's front matter; None without one."""
    try:
        front = _FRONT.match(path.read_text(encoding="utf-8"))
        values = yaml.safe_load(front["yaml"]) if front else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    licence = values.get("license") if isinstance(values, dict) else None
    return one_line(licence) if isinstance(licence, str) else None


def data_claims(registry: Registry, record: AdapterRecord) -> Iterator[Claim]:
    """What it was trained on: origin and licence of the data, and what became of its rows."""
    lineage = registry.lineage(record)
    if lineage.dataset:
        yield from _dataset(registry.store.get_record(DatasetSnapshot, lineage.dataset), lineage.dataset)
    if lineage.preferences:
        pairs = registry.store.get_record(PreferenceSnapshot, lineage.preferences)
        yield from _preferences(pairs, lineage.preferences)
    for name, n in sorted(lineage.n_rows.items()):
        yield Claim("Data", f"Rows {name}, as training saw them: {n}", "lineage", record.lineage)
    yield from _beside(registry, record)


def _dataset(snapshot: DatasetSnapshot, digest: str) -> Iterator[Claim]:
    kind = "dataset"
    yield Claim("Data", f"Dataset {snapshot.name}: {one_line(snapshot.origin)}", kind, digest)
    yield Claim("Data", f"Licence of the data: {one_line(snapshot.licence)}", kind, digest)
    for pool, n in sorted(snapshot.n_rows.items()):
        yield Claim("Data", f"Rows in pool {pool}: {n}", kind, digest)
    for reason, n in sorted(snapshot.n_dropped.items()):
        yield Claim("Data", f"Rows left out of the dataset, {one_line(reason)}: {n}", kind, digest)


def _preferences(pairs: PreferenceSnapshot, digest: str) -> Iterator[Claim]:
    kind = "preferences"
    yield Claim(
        "Data", f"Preferences {pairs.name}: {pairs.n_pairs} pairs, {one_line(pairs.rule)}", kind, digest
    )
    yield Claim("Data", f"Licence of the preferences: {one_line(pairs.licence)}", kind, digest)
    for reason, n in sorted(pairs.n_dropped.items()):
        yield Claim("Data", f"Items that became no pair, {one_line(reason)}: {n}", kind, digest)


def _beside(registry: Registry, record: AdapterRecord) -> Iterator[Claim]:
    """Rows dropped by reason, and the quality report, from the files that training left beside the lineage."""
    events = registry.ledger.events("adapter.registered")
    found = [e.body for e in events if e.body["adapter"] == record.adapter and "lineage_files" in e.body]
    if not found:
        return
    digest, kind = str(found[-1]["lineage_files"]), "run files"
    folder = registry.store.verify("lineage_files", digest)
    if (folder / DROPPED_FILE).is_file():
        lines = (folder / DROPPED_FILE).read_text(encoding="utf-8").splitlines()
        # Numbers in a reason are the row's own: "has 300 tokens" and "has 301 tokens" are one reason.
        reasons = Counter(re.sub(r"\d+", "N", one_line(json.loads(line)["reason"], 120)) for line in lines)
        for reason, n in reasons.most_common(MAX_REASONS):
            yield Claim("Data", f"Rows dropped before training, {reason}: {n}", kind, digest)
    if (folder / QUALITY_FILE).is_file():
        report = json.loads((folder / QUALITY_FILE).read_text(encoding="utf-8"))
        for name, value in _figures(report):
            yield Claim("Data", f"Quality check, {name}: {value}", kind, digest)


def _figures(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The numbers and yes-or-nos of a report with their dotted names, in its order."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _figures(part, f"{prefix}.{name}" if prefix else one_line(str(name)))
    elif isinstance(value, bool | int | float):
        yield prefix, value


def training_claims(registry: Registry, record: AdapterRecord) -> Iterator[Claim]:
    """How it was trained: figures, seeds, code, machine, packages; of an imported adapter that it was."""
    lineage, digest = registry.lineage(record), record.lineage

    def claim(text: str) -> Claim:
        return Claim("Training", text, "lineage", digest)

    if lineage.origin == "imported":
        yield claim("Trained elsewhere and imported: its data and recipe are not on record")
        return
    method = lineage.recipe.get("method", {})
    yield claim(f"Method: {method.get('kind', 'not recorded')}")
    if lineage.continues:
        yield claim(f"Began with the weights of adapter {short(lineage.continues)}")
    for name, value in sorted(lineage.metrics.items()):
        yield claim(f"{name}: {value:.6g}")
    yield claim("Seeds: " + ", ".join(f"{name} {seed}" for name, seed in sorted(lineage.seeds.items())))
    yield claim(f"Code: {_code(lineage)}")
    machine = ", ".join(f"{name} {one_line(value)}" for name, value in sorted(lineage.hardware.items()))
    yield claim(f"Machine: {machine}")
    versions = [f"{name} {lineage.packages[name]}" for name in PACKAGES if name in lineage.packages]
    yield claim(f"Packages: {', '.join(versions)} ({len(lineage.packages)} in all are on record)")


def _code(lineage: Lineage) -> str:
    if lineage.git_sha is None:
        return "no repository"
    return f"commit {short(lineage.git_sha)}" + (
        f" with uncommitted changes (sha256 {short(lineage.git_diff_sha256)})"
        if lineage.git_diff_sha256
        else ""
    )
