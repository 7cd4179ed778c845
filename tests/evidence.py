"""Registered adapters and genuine evidence records, made without training or an engine."""

from __future__ import annotations

import json
from pathlib import Path

from llmops.ledger import Event
from llmops.records import (
    AdapterRecord,
    Check,
    Completion,
    Decision,
    EngineSignature,
    Lineage,
    MetricResult,
    Probes,
    Report,
    Verdict,
)
from llmops.registry.adapters import NewAdapter, Registry
from llmops.registry.bases import Base
from llmops.schema import canonical_json
from llmops.settings import now

NO_PROBES = Probes(((1, 2, 3),), ((-1.0, -2.0),), ((-0.5, -0.25),))
LINEAGE = Lineage(
    origin="imported", recipe={}, recipe_digest="0" * 64, dataset=None, preferences=None,
    continues=None, n_rows={}, git_sha=None, git_diff_sha256=None,
    seeds={}, packages={}, hardware={}, tracking_run=None, metrics={},
)  # fmt: skip


def register(
    registry: Registry, base: Base, folder: Path, name: str = "docs", probes: Probes = NO_PROBES
) -> AdapterRecord:
    """Register a PEFT folder as an adapter of `base`."""
    return registry.register(NewAdapter(name, folder, base, base.contract, probes, LINEAGE, {}))


def engine_of(base: Base, dtype: str = "float32") -> EngineSignature:
    """A signature of the embedded engine on `base`."""
    return EngineSignature("transformers", "5.19.0", dtype, None, "cpu", base.digest, 512)


def decide(
    registry: Registry,
    candidate: AdapterRecord,
    engine: EngineSignature,
    baseline: str | None = None,
    verdict: Verdict = "PASS",
    public_name: str = "docs",
    champion: str | None = None,
) -> tuple[Decision, Event]:
    """Store two reports and a decision about `candidate` and write it into the ledger.

    `champion` is what the name stood for, where that is not the baseline.
    """
    other = baseline or candidate.base
    reports = (
        _report(registry, candidate.adapter, candidate, engine),
        _report(registry, other, candidate, engine),
    )
    check = Check("rougeL", "superior", 0.0, 27.0, 14.8, 12.2, 9.7, 14.7, 0.95, 1, verdict, None, "paired t")
    decision = Decision(
        gate="g", gate_digest="0" * 64, gate_declared=1, public_name=public_name, candidate=candidate.adapter,
        baseline=other, champion=champion or (None if other == candidate.base else other), base=candidate.base,
        reports=reports, engine=engine, verdict=verdict, checks=(check,), reasons=(),
        ratings=None, n_approvals=0, created_at=now(),
    )  # fmt: skip
    body = {
        "decision": registry.store.put_record(decision), "public_name": public_name, "verdict": verdict,
        "candidate": candidate.adapter,
    }  # fmt: skip
    return decision, registry.ledger.append("decision.made", body)


def _report(registry: Registry, model: str, candidate: AdapterRecord, engine: EngineSignature) -> str:
    completion = Completion(
        "c" * 64, model[:12], "answered", "text", "stop", 5, 2, 0.1, model, candidate.prompt_contract
    )
    line = canonical_json(completion.__dict__)
    completions = registry.store.put_files("completions", {"completions.jsonl": line + b"\n"})
    report = Report(
        suite="s", suite_digest="0" * 64, system=f"x@{model[:12]}", model=model, base=candidate.base,
        prompt_contract=candidate.prompt_contract, engine=engine, session="s1", decoding={"temperature": 0},
        cases="0" * 64, completions=completions, n_cases=1, n_samples=1, n_errored=0,
        metrics={"rougeL": MetricResult(27.0, 24.0, 30.0, 0.9, "sig")}, invalid=(), created_at=now(),
    )  # fmt: skip
    return registry.store.put_record(report)


def activate(registry: Registry, request: Event) -> None:
    """Write what a gateway writes after it has moved a name."""
    body = {k: request.body[k] for k in ("public_name", "release", "adapter")}
    registry.ledger.append("release.activated", body)


def copy_with_other_weights(folder: Path, target: Path, factor: float) -> Path:
    """A copy of a PEFT folder whose B matrices are scaled: another adapter with the same shapes."""
    from safetensors.torch import load_file, save_file

    target.mkdir(parents=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(folder / "adapter_model.safetensors")
    scaled = {k: v * factor if "lora_B" in k else v for k, v in weights.items()}
    save_file(scaled, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target
