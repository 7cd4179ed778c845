"""Base and adapter as one model: equal to PEFT's own merge, checked after writing, whole or not there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmops.chat import read_contract
from llmops.registry.bases import resolve_base
from llmops.train.export import merge as merging
from llmops.train.export.weights import MergedWeights
from tests.train.export.support import Shop, llmops

Tensors = dict[str, torch.Tensor]


def _peft_merged(base: Path, adapter: Path) -> Tensors:
    """PEFT's own merge, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    state: Tensors = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()
    return state


def test_merged_fp32_files_are_pefts_own_merge_bit_for_bit(shop: Shop) -> None:
    out = shop.root / "merged"
    said = llmops("merge", "docs", out, "--dtype", "fp32")
    assert said.code == 0, said.error
    written, wanted = load_file(out / "model.safetensors"), _peft_merged(shop.base, shop.adapter)
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)
    ids = torch.arange(32)[None]
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(shop.base, dtype=torch.float32), str(shop.adapter)
    )
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        assert float((merged(ids).logits - peft(ids).logits).abs().max()) < 1e-4
    assert re.search(r"\d(\.\d+)?e-0\d nats a token .* 64 of 64 greedy tokens equal", said.out), said.out


def test_merged_bf16_files_are_the_fp32_merge_rounded_once(shop: Shop) -> None:
    assert llmops("merge", "docs", shop.root / "merged").code == 0
    written = load_file(shop.root / "merged" / "model.safetensors")
    for name, tensor in _peft_merged(shop.base, shop.adapter).items():
        assert torch.equal(written[name], tensor.bfloat16()), name
    config = json.loads((shop.root / "merged" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "shape",
    [
        {"use_dora": True},
        {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"k_proj": 3}},
    ],
)
def test_other_shapes_of_lora_merge_as_peft_merges_them(
    shape: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **shape)
    model = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    weights = MergedWeights(resolve_base(str(tiny_model)), tmp_path / "adapter")
    wanted = _peft_merged(tiny_model, tmp_path / "adapter")
    assert weights.n_changed == 14
    assert all(torch.equal(weights.tensor(name), wanted[name]) for name in wanted)


def test_merged_folder_is_a_base_model_that_recipes_train_on(shop: Shop) -> None:
    out = shop.root / "merged"
    assert llmops("merge", "docs", out, "--dtype", "fp32").code == 0
    base = resolve_base(str(out))
    assert base.contract == read_contract(shop.base)
    assert AutoTokenizer.from_pretrained(out)("héllo")["input_ids"] == list("héllo".encode())
    [event] = shop.events("adapter.exported")
    assert (event["adapter"], event["as_base"]) == (shop.record.adapter, base.digest)
    said = json.loads((out / "llmops_source.json").read_text())
    assert (said["adapter"], said["base"]) == (shop.record.adapter, resolve_base(str(shop.base)).digest)
    rows = [json.dumps({"prompt": f"ask {i}", "completion": f"say {i}"}) for i in range(4)]
    (shop.root / "rows.jsonl").write_text("\n".join(rows) + "\n")
    recipe = {
        "name": "again", "base_model": str(out), "method": {"kind": "sft"}, "n_steps": 2, "learning_rate": 0.01,
        "data": {"kind": "files", "paths": ["rows.jsonl"]}, "batch": {"per_device": 2}, "precision": "fp32",
        "device": "cpu", "held_out_frac": 0, "lora": {"r": 8},
    }  # fmt: skip
    (shop.root / "again.yaml").write_text(yaml.safe_dump(recipe))
    assert llmops("finetune", shop.root / "again.yaml").code == 0
    assert shop.registry.adapter("again").base == base.digest


def test_shards_and_their_index_load_as_one_model(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "SHARD_BYTES", 150_000)
    assert llmops("merge", "docs", shop.root / "merged", "--dtype", "fp32").code == 0
    assert len(list((shop.root / "merged").glob("model-*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(shop.root / "merged", dtype=torch.float32)
    wanted = _peft_merged(shop.base, shop.adapter)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def _drop_a_tensor(tensors: Tensors, save: Callable[..., None], path: Path, **how: Any) -> None:
    save({n: t for n, t in tensors.items() if "layers.1.mlp.up_proj" not in n}, path, **how)


def _flip_a_bit(tensors: Tensors, save: Callable[..., None], path: Path, **how: Any) -> None:
    save(tensors, path, **how)
    content = bytearray(Path(path).read_bytes())
    content[-1000] ^= 1
    Path(path).write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [_drop_a_tensor, _flip_a_bit])
def test_a_file_that_is_not_what_was_written_is_refused_and_removed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, harm: Callable[..., None]
) -> None:
    save = safetensors.torch.save_file
    monkeypatch.setattr(safetensors.torch, "save_file", lambda t, p, **how: harm(t, save, p, **how))
    before = sorted(shop.root.iterdir())
    said = llmops("merge", "docs", shop.root / "merged")
    assert said.code == 4
    assert "is not there as it was written" in said.error
    assert sorted(shop.root.iterdir()) == before
    assert shop.events("adapter.exported") == []


def test_a_model_without_the_adapter_in_it_is_refused_and_removed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmops.train.export.weights._merge", lambda layer, weight, name: weight)
    said = llmops("merge", "docs", shop.root / "merged", "--tolerance", 5)
    assert said.code == 4
    assert "keep 0% of what it changes on its probes, 75% is the least" in said.error
    assert not list(shop.root.glob("*merged*"))


def test_a_stricter_tolerance_than_rounding_allows_is_not_met(shop: Shop) -> None:
    said = llmops("merge", "docs", shop.root / "merged", "--dtype", "bf16", "--tolerance", "0.0001")
    assert said.code == 4
    assert re.search(r"differ by 0\.0\d+ nats a token on its probes, 0\.0001 is allowed", said.error)
    assert not list(shop.root.glob("*merged*"))


def test_what_cannot_be_merged_is_refused_before_anything_is_loaded(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    assert llmops("merge", "docs", tmp_path / "taken").code == 2
    assert "fp64" in llmops("merge", "docs", tmp_path / "m", "--dtype", "fp64").error
    assert llmops("merge", "nobody", tmp_path / "m").code == 2
    assert "is no folder" in llmops("merge", "docs", tmp_path / "no" / "m").error


def test_a_base_that_became_another_model_is_refused(shop: Shop, tmp_path: Path) -> None:
    import shutil

    from llmops.train.importer import ImportRequest, import_adapter

    base = Path(shutil.copytree(shop.base, tmp_path / "base"))
    import_adapter(ImportRequest(shop.adapter, str(base), "other"), shop.workspace)
    (base / "generation_config.json").write_text('{"eos_token_id": 257, "temperature": 0.5}')
    said = llmops("merge", "other", tmp_path / "m")
    assert said.code == 2
    assert "belongs to base" in said.error


def test_exported_peft_folder_loads_in_peft_and_names_no_digest_as_a_revision(shop: Shop) -> None:
    out = shop.root / "adapter"
    said = llmops("export", "docs", out, "--as", "peft")
    assert said.code == 0, said.error
    theirs, ours = (load_file(folder / "adapter_model.safetensors") for folder in (shop.adapter, out))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    config = LoraConfig.from_pretrained(str(out))
    assert config.revision is None
    assert (
        AutoTokenizer.from_pretrained(out).chat_template
        == AutoTokenizer.from_pretrained(shop.base).chat_template
    )
    assert (out / "README.md").read_text().startswith("---\nlibrary_name: peft\n")
