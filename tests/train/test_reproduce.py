"""`llmops reproduce`: an adapter is trained again from its lineage, and the first stage that differs is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from llmops.cli.commands import app
from llmops.errors import BadRequest
from llmops.registry.adapters import Registry
from llmops.train import reproduce as module
from llmops.train.finetune import finetune
from llmops.train.importer import ImportRequest, import_adapter
from llmops.train.methods import TRAIN, sft
from tests.tiny import build_tiny_model
from tests.train.support import Bench


def _reproduce(bench: Bench, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, dict[str, Any]]:
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(bench.root))
    done = CliRunner().invoke(app, ["reproduce", *arguments, "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_adapter_is_reproduced_without_its_recipe_and_rows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bench.recipe(lora={"r": 8, "dropout": 0.1}, held_out_frac=0.25)
    record = finetune(path, bench.workspace)
    path.unlink()
    (bench.root / "rows.jsonl").unlink()
    before = Registry.of(bench.workspace).ledger.head()
    code, found = _reproduce(bench, monkeypatch, "tiny-sft")
    assert (code, found["grade"], found["again"]) == (0, "EXACT", record.adapter)
    assert found["differs"] is None
    assert Registry.of(bench.workspace).ledger.head() == before


def _perturbed(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    """From now on training starts from a base whose output layer is off by a fraction, as other kernels are."""
    load = sft.load_base

    def off(*arguments: Any) -> Any:
        model = load(*arguments)
        with torch.no_grad():
            model.lm_head.weight.mul_(1 + by)
        return model

    monkeypatch.setattr(sft, "load_base", off)


@pytest.mark.parametrize(
    ("by", "grade", "code"),
    [(1e-6, "EQUIVALENT", 0), pytest.param(1.0, "DIVERGED", 4, marks=pytest.mark.walk)],
)
def test_other_arithmetic_is_graded_by_what_it_changes_and_its_first_step_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, by: float, grade: str, code: int
) -> None:
    finetune(bench.recipe(learning_rate=3e-3), bench.workspace)
    _perturbed(monkeypatch, by)
    found_code, found = _reproduce(bench, monkeypatch, "latest")
    assert (found["grade"], found_code) == (grade, code)
    assert str(found["differs"]).startswith("loss of step 1: ")
    assert (found["change_nats"] <= 0.1 * found["effect_nats"]) == (grade == "EQUIVALENT")


@pytest.mark.walk
def test_other_configuration_around_equal_weights_is_weights_exact(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(bench.recipe(n_steps=2), bench.workspace)
    save = sft.save_adapter

    def with_more(model: Any, folder: Path) -> None:
        save(model, folder)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"a_new_setting": True}))

    monkeypatch.setattr(sft, "save_adapter", with_more)
    code, found = _reproduce(bench, monkeypatch, "latest")
    assert (found["grade"], code) == ("WEIGHTS-EXACT", 0)
    assert found["differs"] == "adapter_config.json: a_new_setting None then, True now"


def test_other_base_is_named_before_anything_is_trained(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(shutil.copytree(bench.base, tmp_path / "base"))
    record = finetune(bench.recipe(base_model=str(base), n_steps=2), bench.workspace)
    shutil.rmtree(base)
    build_tiny_model(base, seed=5)
    monkeypatch.setitem(TRAIN, "sft", lambda *_: pytest.fail("trained"))
    code, found = _reproduce(bench, monkeypatch, "latest")
    assert (found["grade"], code, found["again"]) == ("DIVERGED", 4, None)
    assert str(found["differs"]).startswith(f"base: {record.base[:12]} then, ")


def test_rows_that_are_encoded_otherwise_are_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    finetune(bench.recipe(n_steps=2), bench.workspace)
    monkeypatch.setitem(TRAIN, "sft", lambda *_: pytest.fail("trained"))
    digest = module.rows_digest
    monkeypatch.setattr(module, "rows_digest", lambda rows: digest(replace(rows, train=rows.train[::-1])))
    code, found = _reproduce(bench, monkeypatch, "latest")
    assert (found["grade"], code) == ("DIVERGED", 4)
    assert str(found["differs"]).startswith("encoded rows: ")


@pytest.mark.walk
def test_preferences_are_learnt_again_from_their_parent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.prefer([(f"What does f{i} do?", f"Return value {i}.", f"It is {i}!") for i in range(8)])
    finetune(bench.recipe(n_steps=2), bench.workspace)
    record = finetune(bench.dpo_recipe(learning_rate=1e-3, n_steps=3), bench.workspace)
    code, found = _reproduce(bench, monkeypatch, "tiny-dpo")
    assert (found["grade"], code, found["again"]) == ("EXACT", 0, record.adapter)


def test_imported_adapter_cannot_be_trained_again(bench: Bench, tiny_adapter: Path) -> None:
    import_adapter(ImportRequest(tiny_adapter, str(bench.base), "theirs"), bench.workspace)
    with pytest.raises(BadRequest, match="was imported, so nothing says how it was trained"):
        module.reproduce("theirs", bench.workspace)
