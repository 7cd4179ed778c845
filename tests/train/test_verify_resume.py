"""`llmops verify-resume`: a user's recipe is broken by signal 9 and gone on with, and the weights are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from llmops.cli.commands import app
from llmops.registry.adapters import Registry
from llmops.train import verify_resume as module
from llmops.train.verify_resume import Order, first_difference
from tests.train.kills import in_child
from tests.train.support import Bench


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Legs in forked children, which need not load the libraries again."""

    def run(order: Order) -> None:
        in_child(lambda: module.train_leg(order))

    monkeypatch.setattr(module, "_run", run)


def _verify(bench: Bench, monkeypatch: pytest.MonkeyPatch, path: Path) -> tuple[int, dict[str, object]]:
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(bench.root))
    done = CliRunner().invoke(app, ["verify-resume", str(path), "--steps", "6", "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_recipe_that_resumes_exactly_is_told_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, forked: None
) -> None:
    path = bench.recipe(lora={"r": 8, "dropout": 0.1}, batch={"per_device": 2})
    code, verdict = _verify(bench, monkeypatch, path)
    assert (code, verdict["exact"], verdict["differs"]) == (0, True, None)
    assert (verdict["killed_at"], verdict["resumed_from"]) == (3, 2)
    assert verdict["unbroken"] == verdict["resumed"]
    registry = Registry.of(bench.workspace)
    assert registry.adapters() == []
    assert registry.ledger.events("run.started") == []


@pytest.mark.walk
def test_state_that_is_not_restored_is_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, forked: None
) -> None:
    """A trainer that forgets its random state draws other dropout after the break."""
    monkeypatch.setattr("transformers.Trainer._load_rng_state", lambda self, checkpoint: None)
    path = bench.recipe(lora={"r": 8, "dropout": 0.3}, batch={"per_device": 2})
    code, verdict = _verify(bench, monkeypatch, path)
    assert (code, verdict["exact"]) == (4, False)
    assert str(verdict["differs"]).startswith("base_model.model.model.layers.0.")


@pytest.mark.walk
def test_legs_are_processes_of_their_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    code, verdict = _verify(bench, monkeypatch, bench.recipe(lora={"r": 8, "dropout": 0.1}))
    assert (code, verdict["exact"]) == (0, True)


def test_first_tensor_that_differs_is_named(tmp_path: Path) -> None:
    one = {"b": torch.ones(2, 3), "a": torch.zeros(4), "c": torch.zeros(1)}
    two = {"b": torch.tensor([[1.0, 1.0, 1.0], [1.0, 3.0, 1.5]]), "a": torch.zeros(4), "c": torch.ones(1)}
    save_file(one, tmp_path / "one")
    save_file(two, tmp_path / "two")
    save_file({"a": torch.zeros(4)}, tmp_path / "three")
    assert first_difference(tmp_path / "one", tmp_path / "two") == "b: 2 of 6 values, by up to 2"
    assert first_difference(tmp_path / "one", tmp_path / "three") == "b is in one of them alone"
    assert first_difference(tmp_path / "one", tmp_path / "one") is None
