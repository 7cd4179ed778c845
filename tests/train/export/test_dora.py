"""DoRA: refused before training without a merged model to serve; with one, that model is made, checked and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.settings import Workspace
from tests.train.export.support import llmops


@pytest.fixture
def recipe(workspace: Workspace, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a DoRA recipe with changes and returns its path."""
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(workspace.root))
    rows = [json.dumps({"prompt": f"ask {i}", "completion": f"say {i}"}) for i in range(4)]
    (workspace.root / "rows.jsonl").write_text("\n".join(rows) + "\n")

    def write(**changes: Any) -> Path:
        values = {
            "name": "dora", "base_model": str(tiny_model), "method": {"kind": "sft"}, "n_steps": 3,
            "data": {"kind": "files", "paths": ["rows.jsonl"]}, "batch": {"per_device": 4}, "learning_rate": 0.01,
            "lora": {"r": 8, "use_dora": True}, "precision": "fp32", "device": "cpu", "held_out_frac": 0,
        }  # fmt: skip
        path = workspace.root / "dora.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return path

    return write


def test_dora_without_a_merged_model_to_serve_is_refused_before_anything_is_read(
    recipe: Any, workspace: Workspace
) -> None:
    said = llmops("finetune", recipe())
    assert said.code == 2
    assert "lora.use_dora: no engine serves a DoRA adapter; set merge: {dtype: bf16}" in said.error
    assert Registry.of(workspace).ledger.events() == []


def test_dora_with_merge_leaves_a_base_model_that_answers_as_the_adapter(
    recipe: Any, workspace: Workspace
) -> None:
    said = llmops("finetune", recipe(merge={"dtype": "fp32"}))
    assert said.code == 0, said.error
    registry = Registry.of(workspace)
    record = registry.adapter("dora")
    [event] = registry.ledger.events("adapter.exported")
    folder = registry.store.verify("merged", str(event.body["merged"]))
    base = resolve_base(str(folder))
    assert (event.body["adapter"], event.body["as_base"]) == (record.adapter, base.digest)
    assert f"merged   {folder}" in said.out
    ids = torch.arange(32)[None]
    lora = AutoModelForCausalLM.from_pretrained(resolve_base(record.base_ref).path, dtype=torch.float32)
    with torch.no_grad():
        plain = lora(ids).logits
        peft = PeftModel.from_pretrained(lora, str(registry.verify(record)))(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    assert any("magnitude" in name for name, _ in lora.named_parameters())
    assert float((merged - peft).abs().max()) < 1e-4 < 1e-2 < float((plain - peft).abs().max())
    said = llmops("release", "override", "docs", "--adapter", "dora", "--reason", "shall be refused")
    assert said.code == 2
    assert "cannot be served as an adapter: DoRA is not served by vLLM" in said.error
    assert registry.ledger.events("release.requested") == []
    assert llmops("gc", "--older-than", 0).code == 0
    assert registry.store.verify("merged", str(event.body["merged"])) == folder


@pytest.mark.walk
def test_a_merged_model_that_does_not_match_fails_the_run_and_is_not_stored(
    recipe: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmops.train.export.weights._merge", lambda layer, weight, name: weight)
    said = llmops("finetune", recipe(merge={"dtype": "bf16", "tolerance_nats": 9}))
    assert said.code == 4
    assert "its answers are not the adapter's" in said.error
    assert not (workspace.store_root / "merged").exists()
    assert Registry.of(workspace).ledger.events("run.finished") == []
