"""Rounds that follow a first one: preferences and continued adapters, from the recipe's file to the record."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from llmops.errors import BadRequest, ConfigError, DataError, InvalidEvidence, TrainingFailed
from llmops.records import AdapterRecord
from llmops.registry.adapters import Registry
from llmops.registry.releases import request_override
from llmops.schema import canonical_json
from llmops.settings import find_workspace
from llmops.tracking import DIGEST_TAG
from llmops.train.finetune import finetune
from llmops.train.importer import ImportRequest, import_adapter
from llmops.train.methods import sft
from tests import in_process
from tests.evidence import activate
from tests.tiny import build_tiny_model
from tests.train.support import Bench

PAIRS = tuple((f"What does f{i} do?", f"Return value {i}.", f"It is function {i}!") for i in range(20))


@pytest.fixture(scope="module")
def first_round(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AdapterRecord]:
    """A workspace with a first adapter, and preferences for a second one beside it."""
    root = tmp_path_factory.mktemp("first")
    (root / "llmops.yaml").write_text("name: test\n")
    bench = Bench(find_workspace(root), tiny_model)
    bench.rows()
    bench.prefer(PAIRS)
    shape = {"r": 8, "alpha": 24, "target_modules": ["q_proj", "v_proj"]}
    return root, finetune(bench.recipe(lora=shape), bench.workspace)


@pytest.fixture
def parent(bench: Bench, first_round: tuple[Path, AdapterRecord]) -> AdapterRecord:
    """The first adapter, in a copy of its workspace."""
    root, record = first_round
    shutil.copytree(root, bench.root, dirs_exist_ok=True)
    return record


def _release(bench: Bench, name: str, record: AdapterRecord) -> None:
    registry = Registry.of(bench.workspace)
    activate(registry, request_override(registry, name, record, "the first one, for a test")[0])


def _config(bench: Bench, record: AdapterRecord) -> dict[str, Any]:
    folder = Registry.of(bench.workspace).verify(record)
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


def _llmops(bench: Bench, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "LLMOPS_WORKSPACE": str(bench.root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "llmops.cli", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.walk
def test_command_line_trains_the_champions_successor_from_preferences(
    bench: Bench, parent: AdapterRecord
) -> None:
    _release(bench, "docs", parent)
    snapshot = bench.prefer(PAIRS)
    later = finetune(
        bench.recipe(name="docs", seed=1), bench.workspace
    )  # an adapter called like the public name
    path = bench.dpo_recipe(continue_from="docs", tracking="mlflow", held_out_frac=0.2)
    done = _llmops(bench, "finetune", str(path), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    registry = Registry.of(bench.workspace)
    record = registry.adapter("tiny-dpo")
    assert said["adapter"]["adapter"] == record.adapter not in (parent.adapter, later.adapter)

    lineage = registry.lineage(record)
    assert (lineage.preferences, lineage.dataset) == (snapshot.digest(), None)
    assert lineage.continues == parent.adapter
    assert lineage.recipe["continue_from"] == parent.adapter
    assert lineage.recipe["method"] == {"kind": "dpo", "beta": 0.1, "loss": "sigmoid", "sft_weight": 0.0}
    assert lineage.n_rows == {"train": 16, "held_out": 4, "dropped": 0}
    assert lineage.seeds == {"order": 0, "held_out": 0}
    assert lineage.metrics["effect_over_parent_nats"] > 1e-3
    assert lineage.metrics["held_out_loss"] < lineage.metrics["held_out_loss_start"]

    (run,) = [p for p in bench.workspace.runs.iterdir() if "tiny-dpo" in p.name]
    assert {"dropped.jsonl", "metrics.jsonl", "recipe.json"} <= {p.name for p in run.iterdir()}
    curve = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "margin", "accuracy"} <= curve[0].keys()

    from mlflow import MlflowClient

    shown = MlflowClient(tracking_uri=bench.workspace.mlflow_uri).get_run(lineage.tracking_run)
    assert shown.data.tags[DIGEST_TAG] == snapshot.digest()
    assert shown.data.params["digests.continues"] == parent.adapter
    assert shown.data.params["method.beta"] == "0.1"
    assert shown.data.metrics["margin"] == pytest.approx(curve[-2]["margin"])
    (data,) = shown.inputs.dataset_inputs
    assert data.dataset.name == "docs-train"


def test_successor_has_its_parents_shape_and_begins_with_its_weights(
    bench: Bench, parent: AdapterRecord
) -> None:
    record = finetune(bench.dpo_recipe(n_steps=1, learning_rate=1e-3), bench.workspace)
    theirs, ours = _config(bench, parent), _config(bench, record)
    assert theirs == ours
    assert (ours["r"], ours["lora_alpha"], ours["target_modules"]) == (8, 24, ["q_proj", "v_proj"])
    registry = Registry.of(bench.workspace)
    before, after = (load_file(registry.verify(r) / "adapter_model.safetensors") for r in (parent, record))
    assert before.keys() == after.keys()
    # One step of Adam moves a weight by the learning rate at most.
    assert 0 < max(float((after[k] - before[k]).abs().max()) for k in before) <= 1.01e-3
    assert sorted(p.name for p in registry.verify(record).iterdir()) == sorted(
        p.name for p in registry.verify(parent).iterdir()
    )


@pytest.mark.walk
def test_same_recipe_gives_the_same_successor(bench: Bench, parent: AdapterRecord) -> None:
    path = bench.dpo_recipe(precision="bf16", batch={"per_device": 2})
    here = finetune(path, bench.workspace)
    done = _llmops(bench, "finetune", str(path), "--json")
    assert json.loads(done.stdout)["adapter"]["adapter"] == here.adapter, done.stderr
    lineage = Registry.of(bench.workspace).lineage(here)
    resolved = bench.root / "resolved.yaml"
    resolved.write_text(json.dumps(lineage.recipe))
    assert finetune(resolved, bench.workspace).adapter == here.adapter
    other = bench.dpo_recipe(precision="bf16", batch={"per_device": 2}, seed=1)
    assert finetune(other, bench.workspace).adapter != here.adapter


def test_preferences_teach_the_base_itself_without_a_parent(bench: Bench) -> None:
    bench.prefer(PAIRS)
    record = finetune(bench.dpo_recipe(continue_from=None, lora={"r": 8}), bench.workspace)
    lineage = Registry.of(bench.workspace).lineage(record)
    assert lineage.continues is None
    assert lineage.seeds["adapter"] == 0
    assert "effect_over_parent_nats" not in lineage.metrics


def test_sft_continues_an_adapter_too(bench: Bench, parent: AdapterRecord) -> None:
    record = finetune(
        bench.recipe(name="more", lora=None, continue_from=parent.model_name, n_steps=2), bench.workspace
    )
    registry = Registry.of(bench.workspace)
    lineage = registry.lineage(record)
    assert lineage.continues == parent.adapter
    assert lineage.dataset is not None
    assert _config(bench, record) == _config(bench, parent)
    assert lineage.metrics["train_loss"] < registry.lineage(parent).metrics["train_loss"]


def test_imported_adapter_of_a_shape_no_recipe_can_ask_for_is_continued(
    bench: Bench, tiny_adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "guest"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(
        (tiny_adapter / "adapter_model.safetensors").read_bytes()
    )
    config = json.loads((tiny_adapter / "adapter_config.json").read_text())
    config |= {"lora_alpha": 12.5, "init_lora_weights": "gaussian"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    guest = import_adapter(ImportRequest(folder, str(bench.base), "guest"), bench.workspace)
    bench.prefer(PAIRS)
    record = finetune(bench.dpo_recipe(continue_from="guest", n_steps=2), bench.workspace)
    assert _config(bench, record)["lora_alpha"] == 12.5
    assert Registry.of(bench.workspace).lineage(record).recipe["lora"]["alpha"] == 12.5
    assert _config(bench, record)["target_modules"] == _config(bench, guest)["target_modules"]


def test_parents_system_prompt_is_taken_over(bench: Bench) -> None:
    parent = finetune(bench.recipe(system="Be brief."), bench.workspace)
    bench.prefer(PAIRS)
    record = finetune(bench.dpo_recipe(), bench.workspace)
    assert record.prompt_contract == parent.prompt_contract
    probed = Registry.of(bench.workspace).probes(record).token_ids[0]
    assert "system\nBe brief.<|im_end|>" in AutoTokenizer.from_pretrained(bench.base).decode(list(probed))
    with pytest.raises(
        ConfigError, match=r"system: 'Be long.' is not that of tiny-sft@\w{12}.*\('Be brief.'\)"
    ):
        finetune(bench.dpo_recipe(system="Be long."), bench.workspace)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"r": 16, "alpha": 24}, r"lora.r: 16 is not that of tiny-sft@\w{12}, .*\(8\); leave lora out"),
        ({"r": 8}, r"lora.alpha: 32 .*\(24\)"),
        ({"r": 8, "alpha": 24}, r"lora.target_modules: 'all-linear' .*\('q_proj', 'v_proj'\)"),
        (
            {"r": 8, "alpha": 24, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
            "lora.use_rslora: True",
        ),
    ],
)
def test_other_shape_than_the_parents_is_refused_by_name(
    bench: Bench, parent: AdapterRecord, lora: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune(bench.dpo_recipe(lora=lora), bench.workspace)


def test_shape_may_be_said_again(bench: Bench, parent: AdapterRecord) -> None:
    shape = {"r": 8, "alpha": 24, "target_modules": ["v_proj", "q_proj"]}
    left_out = finetune(bench.dpo_recipe(), bench.workspace)
    assert finetune(bench.dpo_recipe(lora=shape), bench.workspace).adapter == left_out.adapter


def test_parent_of_another_base_is_refused(bench: Bench, parent: AdapterRecord, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", seed=5)
    with pytest.raises(
        ConfigError, match=r"continue_from: tiny-sft@\w{12} belongs to \S+model .*, not to base_model"
    ):
        finetune(bench.dpo_recipe(base_model=str(other)), bench.workspace)


def test_altered_parent_is_refused_before_weights_load(
    bench: Bench, parent: AdapterRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(sft, "load_base", never)
    weights = Registry.of(bench.workspace).verify(parent) / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(InvalidEvidence, match=r"adapter_model\.safetensors was changed"):
        finetune(bench.recipe(name="more", lora=None, continue_from="tiny-sft"), bench.workspace)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"continue_from": "nobody"}, "'nobody' is no public name with a champion.* no such adapter"),
        ({"data": {"kind": "preferences", "name": "unasked"}}, "llmops feedback export unasked"),
        ({"max_tokens": 4096}, "max_tokens: 4096 is over"),
    ],
)
def test_missing_parents_and_preferences_say_what_to_do(
    bench: Bench, parent: AdapterRecord, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        finetune(bench.dpo_recipe(**changes), bench.workspace)


def test_wrong_combination_ends_the_command_with_one_line_and_no_run(bench: Bench) -> None:
    done = in_process.llmops(
        bench.root, "finetune", str(bench.dpo_recipe(data={"kind": "dataset", "name": "rows"}))
    )
    assert done.code == 2
    assert "data: method dpo learns from pairs; give {kind: preferences, name: CAMPAIGN}" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not bench.workspace.runs.exists()


def test_successor_that_learnt_nothing_is_refused_though_its_parents_effect_is_there(
    bench: Bench, parent: AdapterRecord
) -> None:
    with pytest.raises(
        TrainingFailed, match=r"tiny-dpo, which continues tiny-sft@\w{12}: learnt nothing new"
    ):
        finetune(bench.dpo_recipe(learning_rate=1e-12, n_steps=1), bench.workspace)
    assert [r.name for r in Registry.of(bench.workspace).adapters()] == ["tiny-sft"]


def test_more_dropped_pairs_than_the_budget_are_listed_and_end_the_run(
    bench: Bench, parent: AdapterRecord
) -> None:
    bench.prefer((*PAIRS, ("Which?", "same", "same")))
    with pytest.raises(DataError, match=r"^rate\.jsonl:21: no preference.*1 of 21 rows"):
        finetune(bench.dpo_recipe(), bench.workspace)
    record = finetune(bench.dpo_recipe(drop_budget_frac=0.1), bench.workspace)
    assert Registry.of(bench.workspace).lineage(record).n_rows == {
        "train": 20,
        "held_out": 0,
        "dropped": 1,
        "dropped: no preference": 1,
    }
    runs = sorted(p for p in bench.workspace.runs.iterdir() if "tiny-dpo" in p.name)
    assert all(json.loads((r / "dropped.jsonl").read_text())["source"] == "rate.jsonl:21" for r in runs)


def test_altered_preferences_are_refused(bench: Bench, parent: AdapterRecord) -> None:
    snapshot = bench.prefer(PAIRS)
    pairs = bench.workspace.store_root / "preferences" / snapshot.artifact / "pairs.jsonl"
    lines = [json.loads(line) for line in pairs.read_bytes().splitlines()]
    lines[0]["chosen"], lines[0]["rejected"] = lines[0]["rejected"], lines[0]["chosen"]
    pairs.chmod(0o644)
    pairs.write_bytes(b"".join(canonical_json(line) + b"\n" for line in lines))
    with pytest.raises(InvalidEvidence, match=r"pairs\.jsonl was changed"):
        finetune(bench.dpo_recipe(), bench.workspace)
