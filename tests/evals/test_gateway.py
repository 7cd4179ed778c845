"""The whole path on real parts: the gateway serves a tiny model, a suite is evaluated through it and a gate decides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from llmops.data import build_snapshot
from llmops.evals.gate import check_gate
from llmops.evals.metrics import METRICS, Answers, Measured, Metric
from llmops.evals.metrics.metric import mean_of_samples
from llmops.evals.run import EvalRequest, evaluate
from llmops.records import Completion, Report
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.schema import digest_of
from llmops.settings import Workspace
from tests.evals.conftest import write
from tests.serving.gateway import Endpoint, register_proved, serving, write_profile

pytestmark = pytest.mark.walk

SUITE = {
    "name": "tiny",
    "cases": {"kind": "dataset", "name": "tiny", "n_max": 24},
    "metrics": ["chrf", "rougeL", "exact_match", "nats"],
    "decoding": {"temperature": 0, "max_tokens": 12},
}
GATE = {
    "name": "tiny",
    "public_name": "docs",
    "suite": "suite.yaml",
    "min_cases": 4,
    "guardrails": [{"metric": "chrf", "margin": 99}],
}


def _nats(answers: Answers) -> Measured:
    logprobs = [sample.reference_logprob for answer in answers for sample in answer.samples]
    return mean_of_samples(answers, -np.array(logprobs, dtype=np.float64))


NATS = Metric(
    "nats", "mean", _nats, lambda _: "nats", better="lower", unit="nats", needs_reference_logprobs=True
)


@pytest.fixture
def tiny(tiny_model: Path, tiny_adapter: Path) -> tuple[Path, Path]:
    return tiny_model, tiny_adapter


def prompts(n_rows: int) -> list[str]:
    """Prompts of three lengths."""
    return ["say" + " again" * (i % 3) + f" {i}" for i in range(n_rows)]


def build_data(workspace: Workspace, registry: Registry, completions: Sequence[str] = ()) -> None:
    """A dataset `tiny` of 60 rows, or of as many as there are completions."""
    answers = list(completions) or [f"word {i}" for i in range(60)]
    asked = zip(prompts(len(answers)), answers, strict=True)
    rows = [{"prompt": p, "completion": c, "group": f"g{i}"} for i, (p, c) in enumerate(asked)]
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
    workspace: Workspace, endpoint: Endpoint, tiny: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "nats", NATS)
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
    assert sorted(answered) == sorted([record.base, record.adapter] * 24)
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
    assert (decision.verdict, decision.checks[0].n_cases) == ("PASS", 24), decision.reasons
    assert decision.engine == base.engine
    require_own_likelihoods(registry, reports, *tiny)


def require_own_likelihoods(
    registry: Registry, reports: list[Report], model_dir: Path, adapter: Path
) -> None:
    """In float32 a reference and its end token have transformers' own log-probability, under each system's weights."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, adapter).eval()
    cases = (
        (registry.store.path("completions", reports[0].completions) / "cases.jsonl").read_text().splitlines()
    )
    for report in reports:
        nats = []
        for line, kept in zip(cases, completions_of(registry, report.completions), strict=True):
            case = json.loads(line)
            prompt = tokenizer.apply_chat_template(
                case["messages"], add_generation_prompt=True, tokenize=False
            )
            reference = tokenizer(case["references"][0] + tokenizer.eos_token, add_special_tokens=False)[
                "input_ids"
            ]
            ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"] + reference])
            without = tuned.disable_adapter() if report.model == report.base else nullcontext()
            with torch.no_grad(), without:
                logprobs = tuned(ids).logits[0, :-1].log_softmax(-1)
            own = logprobs.gather(1, ids[0, 1:, None])[-len(reference) :].sum().item()
            assert kept.reference_logprob == pytest.approx(own, rel=1e-4)
            assert kept.n_reference_tokens == len(reference)
            nats.append(-own)
        assert report.metrics["nats"].value == pytest.approx(np.mean(nats), rel=1e-4)
    assert reports[0].metrics["nats"].value != pytest.approx(reports[1].metrics["nats"].value, rel=1e-3)
