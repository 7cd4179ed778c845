"""The default gate on a real engine, through the command line: four suites asked, every kind of check decided on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from llmops.evals.gate import load_gate
from llmops.records import Decision
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.schema import load_record
from llmops.settings import Workspace
from tests.evals.conftest import write
from tests.evals.test_gateway import build_data, prompts
from tests.in_process import llmops
from tests.serving.gateway import Endpoint, register_proved, serving, write_profile

pytestmark = pytest.mark.walk
N_ROWS = 220
EVALS = Path(__file__).parents[2] / "evals"
TASK = {
    "name": "docstrings",
    "cases": {"kind": "dataset", "name": "tiny", "n_max": 100, "slice_by": ["length"]},
    "metrics": ["rougeL", "chrf"],
    "decoding": {"temperature": 0, "max_tokens": 4},
}


def shipped(root: Path) -> Path:
    """The shipped gate and suites in a workspace, with a task that this model can be asked; answers cut short."""
    shutil.copytree(EVALS, root / "evals")
    write(root / "evals" / "suites" / "docstrings.yaml", TASK)
    for name in ("general", "safety", "fairness"):
        path = root / "evals" / "suites" / f"{name}.yaml"
        suite = yaml.safe_load(path.read_text())
        write(path, {**suite, "decoding": {**suite["decoding"], "max_tokens": 2}})
    return root / "evals" / "gates" / "default.yaml"


def said_by(endpoint: Endpoint, model: str) -> list[str]:
    """What a model answers to each prompt of the dataset, for two of three; the others wish for something else."""
    answers = []
    for i, prompt in enumerate(prompts(N_ROWS)):
        answer = endpoint.chat(model, prompt, max_tokens=TASK["decoding"]["max_tokens"], temperature=0)
        said = answer.json()["choices"][0]["message"]["content"]
        answers.append(said if i % 3 and said.strip() else f"word {i}")
    return answers


def test_default_gate_decides_about_a_model_that_an_engine_serves(
    workspace: Workspace, tiny_model: Path, tiny_adapter: Path
) -> None:
    registry, base = Registry.of(workspace), resolve_base(str(tiny_model))
    adapter = register_proved(registry, base, tiny_adapter)
    path = shipped(workspace.root)
    with serving(write_profile(workspace.root, base.path, max_model_tokens=512), workspace) as endpoint:
        endpoint.add(adapter).raise_for_status()
        build_data(workspace, registry, said_by(endpoint, adapter.model_name))
        done = llmops(workspace.root, "gate", "run", str(path), "--endpoint", endpoint.url, "--json")
    assert done.code in (0, 1, 3), done.err
    decision, gate = load_record(Decision, json.loads(done.out)), load_gate(path)
    found = {(check.role, check.suite, check.metric) for check in decision.checks}
    assert ("primary", "task", "rougeL") in found
    assert {("guardrail", gate.suite_of(rule), rule.metric) for rule in gate.guardrails} <= found
    assert {"slice", "pair"} <= {role for role, _, _ in found}
    assert {check.n_cases for check in decision.checks if check.suite == "general" and not check.group} == {
        160
    }
    told = llmops(workspace.root, "gate", "explain", "latest")
    assert (told.code, decision.verdict in told.out) == (0, True), told.err
