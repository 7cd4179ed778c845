"""Adapters trained elsewhere: what comes in, and what is refused by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmops.errors import BadRequest, TrainingFailed
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.settings import Workspace
from llmops.train.importer import BUILT_IN_PROBES, ImportRequest, import_adapter
from llmops.train.probes import compute_probes, effect_nats
from tests.tiny import build_tiny_adapter, build_tiny_model

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(tiny_adapter: Path, tmp_path: Path) -> Path:
    """A copy of the tiny adapter that a test may spoil."""
    return Path(shutil.copytree(tiny_adapter, tmp_path / "elsewhere"))


def _set(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _import(folder: Path, base: Path, workspace: Workspace, **more: Any) -> Any:
    return import_adapter(ImportRequest(folder, str(base), "guest", **more), workspace)


def _nothing_came_in(workspace: Workspace) -> bool:
    return Registry.of(workspace).ledger.events() == [] and not (workspace.store_root / "adapter").exists()


def test_imported_adapter_is_registered_with_its_contract_probes_and_origin(
    folder: Path, tiny_model: Path, workspace: Workspace
) -> None:
    record = _import(folder, tiny_model, workspace, system="You are a guest.")
    registry = Registry.of(workspace)
    stored = registry.verify(record)
    theirs, ours = load_file(folder / WEIGHTS), load_file(stored / WEIGHTS)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert registry.contract(record).system == "You are a guest."
    assert registry.contract(record).without_system() == resolve_base(str(tiny_model)).contract
    lineage = registry.lineage(record)
    assert (lineage.origin, lineage.recipe, lineage.dataset) == ("imported", {}, None)
    probes = registry.probes(record)
    assert len(probes.token_ids) == len(BUILT_IN_PROBES) == 8
    again = compute_probes(tiny_model, stored, probes.token_ids)
    assert effect_nats(again) == pytest.approx(lineage.metrics["effect_nats"], rel=1e-6)


def test_given_texts_are_what_is_probed(folder: Path, tiny_model: Path, workspace: Workspace) -> None:
    record = _import(folder, tiny_model, workspace, texts=("abc", "hello"))
    assert Registry.of(workspace).probes(record).token_ids == (tuple(b"abc"), tuple(b"hello"))


@pytest.mark.walk
def test_import_through_the_command_line_lists_the_adapter(
    folder: Path, tiny_model: Path, workspace: Workspace
) -> None:
    env = {**os.environ, "LLMOPS_WORKSPACE": str(workspace.root), "OMP_NUM_THREADS": "1"}

    def llmops(*arguments: str) -> str:
        command = [sys.executable, "-m", "llmops.cli", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    said = llmops("adapter", "import", str(folder), "--base", str(tiny_model), "--name", "guest")
    record = Registry.of(workspace).adapter("guest")
    assert record.model_name in said
    assert record.model_name in llmops("adapter", "list")


def test_renamed_key_prefixes_are_refused(folder: Path, tiny_model: Path, workspace: Workspace) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {k.replace("base_model.model.model.", "base_model.model."): v for k, v in tensors.items()},
        folder / WEIGHTS,
    )
    with pytest.raises(
        BadRequest,
        match=r"tensor names are not those of.*missing: base_model\.model\.model\.layers.*not known",
    ):
        _import(folder, tiny_model, workspace)
    assert _nothing_came_in(workspace)


def test_layers_missing_from_the_weights_are_refused(
    folder: Path, tiny_model: Path, workspace: Workspace
) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in tensors.items() if "down_proj" not in k}, folder / WEIGHTS)
    with pytest.raises(BadRequest, match=r"missing: \S+down_proj\S+, .* and 1 more"):
        _import(folder, tiny_model, workspace)


def test_rank_that_is_not_the_weights_own_is_refused(
    folder: Path, tiny_model: Path, workspace: Workspace
) -> None:
    _set(folder, r=16)
    with pytest.raises(
        BadRequest, match=r"is \[\d+, \d+\], the rank and base ask for \[\d+, \d+\]; correct r"
    ):
        _import(folder, tiny_model, workspace)


def test_values_that_are_not_finite_are_refused(folder: Path, tiny_model: Path, workspace: Workspace) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = sorted(tensors)[3]
    tensors[name][0, 0] = float("inf")
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(BadRequest, match=re.escape(name) + " has values that are not finite"):
        _import(folder, tiny_model, workspace)


def test_adapter_without_effect_is_refused(tiny_model: Path, tmp_path: Path, workspace: Workspace) -> None:
    with pytest.raises(TrainingFailed, match="has no effect"):
        _import(build_tiny_adapter(tiny_model, tmp_path / "none", scale=0.0), tiny_model, workspace)
    assert _nothing_came_in(workspace)


def test_adapter_of_a_model_folder_with_other_weights_is_refused(
    folder: Path, tmp_path: Path, workspace: Workspace
) -> None:
    other = build_tiny_model(tmp_path / "other", seed=9)
    with pytest.raises(BadRequest, match=r"was trained on .*not on"):
        _import(folder, other, workspace)


def test_adapter_of_another_hub_model_is_refused(
    folder: Path, tiny_model: Path, workspace: Workspace
) -> None:
    _set(folder, base_model_name_or_path="someone/another-model")
    with pytest.raises(BadRequest, match=re.escape("was trained on someone/another-model")):
        _import(folder, tiny_model, workspace)


def test_adapter_trained_in_a_folder_of_another_machine_comes_in(
    folder: Path, tiny_model: Path, workspace: Workspace
) -> None:
    _set(folder, base_model_name_or_path="/home/someone/models/tiny")
    assert _import(folder, tiny_model, workspace).base == resolve_base(str(tiny_model)).digest


def test_stored_adapter_can_be_imported_again_under_the_same_digest(
    folder: Path, tiny_model: Path, workspace: Workspace
) -> None:
    record = _import(folder, tiny_model, workspace)
    stored = Registry.of(workspace).verify(record)
    assert _import(stored, tiny_model, workspace).adapter == record.adapter


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_dora": True}, "could not be served: DoRA"),
        ({"modules_to_save": ["lm_head"]}, "could not be served: modules_to_save"),
        ({"peft_type": "IA3"}, "could not be served: peft_type IA3"),
    ],
)
def test_adapter_that_cannot_be_served_is_refused(
    folder: Path, tiny_model: Path, workspace: Workspace, values: dict[str, Any], message: str
) -> None:
    _set(folder, **values)
    with pytest.raises(BadRequest, match=message):
        _import(folder, tiny_model, workspace)


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
def test_missing_file_is_named(folder: Path, tiny_model: Path, workspace: Workspace, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadRequest, match=f"has no {name}"):
        _import(folder, tiny_model, workspace)


def test_damaged_files_are_named(folder: Path, tiny_model: Path, workspace: Workspace) -> None:
    config = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(BadRequest, match="is not JSON"):
        _import(folder, tiny_model, workspace)
    (folder / "adapter_config.json").write_text(config)
    (folder / WEIGHTS).write_bytes(b"not tensors")
    with pytest.raises(BadRequest, match="cannot be read"):
        _import(folder, tiny_model, workspace)


def test_reserved_name_is_refused(folder: Path, tiny_model: Path, workspace: Workspace) -> None:
    with pytest.raises(BadRequest, match="name 'base'"):
        import_adapter(ImportRequest(folder, str(tiny_model), "base"), workspace)
