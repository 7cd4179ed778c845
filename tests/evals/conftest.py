"""A workspace with a base, an adapter, a dataset and a suite, evaluated against a scripted counterpart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from llmops.data import build_snapshot
from llmops.engines.endpoint import Patience
from llmops.evals.run import EvalRequest, evaluate
from llmops.records import AdapterRecord, PromptContract, Report
from llmops.registry.adapters import Registry
from llmops.registry.bases import Base
from llmops.settings import Workspace
from tests.evals.counterpart import Counterpart, Fault, served
from tests.evidence import engine_of, register

N_CASES = 100
Script = Callable[[str, str, int], str | Fault]


@dataclass
class Room:
    """Everything an evaluation needs, and how to run one."""

    workspace: Workspace
    registry: Registry
    base: Base
    folder: Path
    adapter: AdapterRecord
    serve: Callable[[Script], Counterpart]

    def suite(self, **settings: Any) -> Path:
        """Write a suite over the gate pool; settings replace the usual ones."""
        config = {
            "name": "questions",
            "cases": {"kind": "dataset", "name": "questions", "pool": "gate", "n_max": N_CASES, "seed": 0},
            "metrics": ["exact_match"],
            "decoding": {"temperature": 0, "max_tokens": 16},
            **settings,
        }
        return write(self.workspace.root / "suite.yaml", config)

    def gate(self, *checks: dict[str, Any], **settings: Any) -> Path:
        """Write a gate on the suite."""
        config = {
            "name": "gate",
            "public_name": "docs",
            "suite": "suite.yaml",
            "checks": list(checks),
            **settings,
        }
        return write(self.workspace.root / "gate.yaml", config)

    def new_adapter(self, name: str, seed: int) -> AdapterRecord:
        return register(self.registry, self.base, write_adapter(self.folder / f"{name}-{seed}", seed), name)

    def run(self, counterpart: Counterpart, suite: Path | None = None, **request: Any) -> list[Report]:
        request = {"concurrency": 8, "cache": False, "patience": Patience(answer_s=10, retry_s=3), **request}
        return evaluate(suite or self.suite(), EvalRequest(counterpart.url, **request), self.workspace)


def write(path: Path, value: Any) -> Path:
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return path


def write_adapter(folder: Path, seed: int) -> Path:
    """A PEFT folder with weights that differ by seed."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(
        json.dumps({"r": 8, "lora_alpha": 16, "peft_type": "LORA", "target_modules": ["q_proj"]})
    )
    weights = np.random.default_rng(seed).normal(size=(8, 4)).astype(np.float32)
    save_file({"layer.lora_A.weight": weights}, folder / "adapter_model.safetensors")
    return folder


def build_questions(workspace: Workspace, registry: Registry, n: int, salt: str = "s") -> None:
    """Rows `question i` -> `answer i` in groups of two, half of the groups in the gate pool."""
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}", "group": f"g{i // 2}"} for i in range(n)]
    (workspace.root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "questions",
        "licence": "CC0-1.0",
        "origin": "counted",
        "source": {"kind": "files", "paths": ["rows.jsonl"]},
        "pools": {"train": 0.4, "rate": 0.1, "gate": 0.5},
        "salt": salt,
    }
    build_snapshot(write(workspace.root / "questions.yaml", config), registry.store, registry.ledger)


@pytest.fixture
def room(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    registry, folder = Registry.of(workspace), tmp_path_factory.mktemp("room")
    base = Base("tiny", folder, "b" * 64, PromptContract("{{ messages }}", "t" * 64, (2,)))
    adapter = register(registry, base, write_adapter(folder / "docs", 1))
    build_questions(workspace, registry, 300)
    with ExitStack() as stack:

        def serve(script: Script) -> Counterpart:
            records = {r.adapter: r for r in registry.adapters()}
            return stack.enter_context(served(Counterpart(base, engine_of(base), records, script)))

        yield Room(workspace, registry, base, folder, adapter, serve)


def right(prompt: str) -> str:
    """The reference of a prompt."""
    return prompt.replace("question", "answer")


def number(prompt: str) -> int:
    """Which question it is."""
    return int(prompt.split()[-1])
