"""Recipes: what is refused, and that every shipped one loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from llmops.errors import ConfigError
from llmops.train.recipe import Recipe, load_recipe
from llmops.train.recipe.settings import Settings
from tests.train.support import Bench

ROOT = Path(__file__).parent.parent.parent
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_recipe_loads_and_says_how_it_is_run(path: Path) -> None:
    load_recipe(path)
    command = "sweep" if path.stem.endswith("-sweep") else "finetune"
    assert path.read_text().splitlines()[0] == f"# llmops {command} recipes/{path.name}"


def test_there_is_a_shipped_recipe() -> None:
    assert "docstrings-sft.yaml" in [p.name for p in SHIPPED]


def test_unknown_setting_is_refused_with_the_nearest_known_one(bench: Bench) -> None:
    path = bench.recipe(lora={"rnk": 8})
    with pytest.raises(ConfigError, match=re.escape("lora.rnk is not a setting; did you mean lora.r")):
        load_recipe(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_steps": None}, "n_steps, n_epochs: neither is given"),
        ({"n_epochs": 2}, "n_steps, n_epochs: both are given"),
        ({"name": "Not A Name"}, "lower-case"),
        ({"lora": {"target_modules": ["q_proj", "lm_head"]}}, "lm_head"),
        ({"lora": {"target_modules": []}}, "names no layer"),
        ({"quantization": "nf4"}, "nf4 computes in bf16"),
        ({"data": {"kind": "dataset", "name": "d", "pool": "gate"}}, "pool"),
        ({"data": {"kind": "table"}}, "data"),
        ({"learning_rate": 0}, "learning_rate"),
        (
            {"method": {"kind": "dpo"}, "data": {"kind": "dataset", "name": "d"}},
            "data: method dpo learns from pairs",
        ),
        ({"data": {"kind": "preferences", "name": "d"}}, "data: preferences are for method dpo"),
        ({"method": {"kind": "magic"}}, "method.kind: must be one of sft, dpo"),
    ],
)
def test_impossible_recipe_is_refused_by_name(bench: Bench, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(bench.recipe(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {"kind": "dpo", "beta": 0}}, "beta"),
        ({"method": {"kind": "dpo", "loss": "hinge"}}, "loss"),
        ({"method": {"kind": "dpo", "sft_weight": -1}}, "sft_weight"),
        ({"method": {"kind": "dpo", "beat": 0.2}}, "beat is not a setting; did you mean method.beta"),
        (
            {"continue_from": None, "lora": {"dropout": 0.1}},
            "lora: dpo compares answers and trains without dropout",
        ),
    ],
)
def test_impossible_preference_recipe_is_refused_by_name(
    bench: Bench, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(bench.dpo_recipe(**changes))


def test_resolved_recipe_loads_again_as_the_same_recipe(bench: Bench, tmp_path: Path) -> None:
    recipe = load_recipe(bench.recipe(lora={"target_modules": ["q_proj", "v_proj"]}, system="Be brief."))
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(again) == recipe


def test_every_setting_has_a_description() -> None:
    def undescribed(model: type, prefix: str = "") -> list[str]:
        found = []
        for name, info in model.model_fields.items():
            if not info.description:
                found.append(prefix + name)
        return found

    from llmops.train import recipe as module

    parts = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Settings)]
    assert [name for part in parts for name in undescribed(part, f"{part.__name__}.")] == []
    assert Recipe in parts
