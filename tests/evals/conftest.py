"""A workspace with a base, an adapter, a dataset and a suite, evaluated against a scripted counterpart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
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
BETTER = {"metric": "exact_match", "kind": "superior", "by": 0}
NO_WORSE = {"metric": "exact_match", "margin": 5}
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
    planned: list[Path] = field(default_factory=list)

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
        """Write a gate on the suite; it can decide about runs that it was planned for."""
        return write(self.workspace.root / "gate.yaml", gate_config(*checks, **settings))

    def plan(self, *checks: dict[str, Any], **settings: Any) -> None:
        """Declare such a gate before whatever is run from now on."""
        path = self.workspace.root / f"planned-{len(self.planned)}.yaml"
        self.planned.append(write(path, gate_config(*checks, **settings)))

    def new_adapter(self, name: str, seed: int) -> AdapterRecord:
        return register(self.registry, self.base, write_adapter(self.folder / f"{name}-{seed}", seed), name)

    def run(self, counterpart: Counterpart, suite: Path | None = None, **request: Any) -> list[Report]:
        request = {
            "concurrency": 8, "cache": False, "patience": Patience(answer_s=10, retry_s=3),
            "gates": tuple(self.planned), **request,
        }  # fmt: skip
        return evaluate(suite or self.suite(), EvalRequest(counterpart.url, **request), self.workspace)


def gate_config(*checks: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A gate on the suite: checks with a kind are the primary metric, others guardrails; BETTER when there is none."""
    primary = [check for check in checks if "kind" in check]
    guardrails = [check for check in checks if "kind" not in check]
    asked: dict[str, Any] = {"primary": primary[0]} if primary else {}
    asked |= {"guardrails": guardrails} if guardrails else {}
    if not asked and not settings.keys() & {"any_improved", "slices", "gaps", "pairs"}:
        asked = {"primary": BETTER}
    places = {} if "suites" in settings else {"suite": "suite.yaml"}
    return {"name": "gate", "public_name": "docs", **places, **asked, **settings}


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


def new_room(workspace: Workspace, folder: Path, stack: ExitStack) -> Room:
    """A room in an empty workspace; its servers run until the stack is closed."""
    registry = Registry.of(workspace)
    base = Base("tiny", folder, "b" * 64, PromptContract("{{ messages }}", "t" * 64, (2,)))
    adapter = register(registry, base, write_adapter(folder / "docs", 1))
    build_questions(workspace, registry, 300)
    return Room(workspace, registry, base, folder, adapter, serving(base, registry, stack))


def serving(base: Base, registry: Registry, stack: ExitStack) -> Callable[[Script], Counterpart]:
    """What starts counterparts that know the registry's adapters."""

    def serve(script: Script) -> Counterpart:
        records = {r.adapter: r for r in registry.adapters()}
        return stack.enter_context(served(Counterpart(base, engine_of(base), records, script)))

    return serve


@pytest.fixture
def room(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with ExitStack() as stack:
        room = new_room(workspace, tmp_path_factory.mktemp("room"), stack)
        room.plan(BETTER)
        room.plan(NO_WORSE)
        yield room


def right(prompt: str) -> str:
    """The reference of a prompt."""
    return prompt.replace("question", "answer")


def number(prompt: str) -> int:
    """Which question it is."""
    return int(prompt.split()[-1])
