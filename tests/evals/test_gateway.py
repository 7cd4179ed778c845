"""The whole path on real parts: the gateway serves a tiny model, a suite is evaluated through it and a gate decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmops.data import build_snapshot
from llmops.evals.gate import check_gate
from llmops.evals.run import EvalRequest, evaluate
from llmops.records import Completion
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.schema import digest_of
from llmops.settings import Workspace
from tests.evals.conftest import write
from tests.serving.gateway import Endpoint, register_proved, serving, write_profile

SUITE = {
    "name": "tiny",
    "cases": {"kind": "dataset", "name": "tiny", "n_max": 12},
    "metrics": ["chrf", "rougeL", "exact_match"],
    "decoding": {"temperature": 0, "max_tokens": 12},
}
GATE = {
    "name": "tiny",
    "public_name": "docs",
    "suite": "suite.yaml",
    "min_cases": 4,
    "guardrails": [{"metric": "chrf", "margin": 99}],
}


def build_data(workspace: Workspace, registry: Registry) -> None:
    rows = [{"prompt": f"say {i}", "completion": f"word {i}", "group": f"g{i}"} for i in range(60)]
    (workspace.root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "tiny",
        "licence": "CC0-1.0",
        "origin": "counted",
        "source": {"kind": "files", "paths": ["rows.jsonl"]},
        "pools": {"train": 0.4, "rate": 0.1, "gate": 0.5},
    }
    build_snapshot(write(workspace.root / "data.yaml", config), registry.store, registry.ledger)


def completions_of(registry: Registry, digest: str) -> list[Completion]:
    path: Path = registry.store.verify("completions", digest) / "completions.jsonl"
    return [Completion(**json.loads(line)) for line in path.read_bytes().splitlines()]


@pytest.fixture
def endpoint(workspace: Workspace, tiny_model: Path, tiny_adapter: Path):  # type: ignore[no-untyped-def]
    registry, base = Registry.of(workspace), resolve_base(str(tiny_model))
    build_data(workspace, registry)
    register_proved(registry, base, tiny_adapter)
    with serving(write_profile(workspace.root, base.path, max_model_tokens=512), workspace) as endpoint:
        yield endpoint


def test_reports_hold_what_each_model_answers_at_the_endpoint_and_the_gate_decides_on_them(
    workspace: Workspace, endpoint: Endpoint
) -> None:
    registry = Registry.of(workspace)
    suite, gate = write(workspace.root / "suite.yaml", SUITE), write(workspace.root / "gate.yaml", GATE)
    reports = evaluate(suite, EvalRequest(endpoint.url, concurrency=4, gates=(gate,)), workspace)
    base, tuned = reports
    record = registry.adapter("latest")
    assert [(r.model, r.n_errored, r.invalid) for r in reports] == [
        (record.base, 0, ()),
        (record.adapter, 0, ()),
    ]
    assert base.engine.to_pairs() == endpoint.status()["engine"]
    log = [json.loads(line) for line in (workspace.logs / "requests.jsonl").read_text().splitlines()]
    answered = [entry["answered_by"] for entry in log if entry["path"] == "/v1/chat/completions"]
    assert sorted(answered) == sorted([record.base, record.adapter] * 12)
    cases = [
        json.loads(line)
        for line in (registry.store.path("completions", base.completions) / "cases.jsonl").open()
    ]
    differ = 0
    for case, ours, theirs in zip(
        cases,
        completions_of(registry, tuned.completions),
        completions_of(registry, base.completions),
        strict=True,
    ):
        prompt = case["messages"][-1]["content"]
        for found in (ours, theirs):
            again = endpoint.chat(found.system, prompt, temperature=0, max_tokens=12)
            assert again.json()["choices"][0]["message"]["content"] == found.text
            assert again.headers["x-llmops-engine"] == digest_of(base.engine.to_pairs())
        differ += ours.text != theirs.text
    assert differ > 0
    decision = check_gate(gate, workspace)
    assert (decision.verdict, decision.checks[0].n_cases) == ("PASS", 12)
    assert decision.engine == base.engine
