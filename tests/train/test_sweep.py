"""Searching over a recipe's settings: what is drawn, what is kept, what a search that was ended goes on with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmops.cli.commands import app
from llmops.errors import BadRequest, ConfigError, CouldNotRun
from llmops.registry.adapters import Registry
from llmops.train import sweep as module
from llmops.train.recipe import load_recipe, parse_override, set_words
from llmops.train.sweep import sweep
from tests.train.support import Bench

pytest.importorskip("optuna")

RANGES = {"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}, "lora.r": {"choices": [8, 16, 32]}}

# A run whose figure is a known function of its settings: |log10(learning_rate) + 3| + r / 100.
CHILD = """
import json, math, sys
settings = dict(word.split("=", 1) for word in sys.argv[5::2])
lr, r = float(settings["learning_rate"]), int(settings["lora.r"])
with open({log!r}, "a") as file:
    file.write(json.dumps([lr, r]) + "\\n")
if r == {bad}:
    print("error: recipe.yaml: lora.r: 32 is too much; lower it", file=sys.stderr)
    sys.exit(2)
figure = abs(math.log10(lr) + 3) + r / 100
lineage = {{"metrics": {{"loss": figure}}, "tracking_run": None}}
print(json.dumps({{"adapter": {{"adapter": "aa" * 32}}, "lineage": lineage}}))
"""


@pytest.fixture
def made_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recipe whose runs are a program of known outcome; returns it with a reader of what was run."""
    log = bench.root / "tried.jsonl"

    def prepare(bad: int = 0, **block: Any) -> Path:
        child = bench.root / "child.py"
        child.write_text(CHILD.format(log=str(log), bad=bad))
        monkeypatch.setattr(module, "FINETUNE", (sys.executable, str(child), "finetune"))
        monkeypatch.setattr(Registry, "make_newest", lambda self, adapter: None)
        return bench.recipe(sweep={"ranges": RANGES, "metric": "loss", "n_trials": 6, **block})

    prepare.tried = lambda: [json.loads(line) for line in log.read_text().splitlines()]  # type: ignore[attr-defined]
    return prepare


def _quiet(done: int, total: int, note: str) -> None:
    """Nobody is told."""


def test_best_trial_is_the_one_with_the_least_figure(bench: Bench, made_up: Any) -> None:
    found = sweep(made_up(), bench.workspace, None, _quiet)
    assert len(found.trials) == len(made_up.tried()) == 6
    assert found.best.figure == min(trial.figure for trial in found.trials)
    for trial in found.trials:
        rate, rank = trial.settings["learning_rate"], trial.settings["lora.r"]
        assert 1e-5 <= rate <= 1e-1
        assert rank in (8, 16, 32)
        assert [rate, rank] in made_up.tried()


def test_search_that_was_ended_goes_on_as_one_that_was_not(
    bench: Bench, made_up: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = made_up()
    whole = sweep(path, bench.workspace, 8, _quiet)
    (bench.workspace.state / module.DATABASE).unlink()
    sweep(path, bench.workspace, 3, _quiet)
    hunt = module._begin(path, bench.workspace)
    cut = module._ask(hunt)  # a trial under way when the search is killed
    again = sweep(path, bench.workspace, 8, _quiet)
    assert [t.settings for t in again.trials] == [t.settings for t in whole.trials]
    assert module._settings(cut.params) == whole.trials[3].settings


def test_trial_that_fails_is_kept_with_its_own_words(bench: Bench, made_up: Any) -> None:
    found = sweep(made_up(bad=32, sampler="random", n_trials=8), bench.workspace, None, _quiet)
    failed = [trial for trial in found.trials if trial.settings["lora.r"] == 32]
    assert failed
    assert {trial.error for trial in failed} == {"recipe.yaml: lora.r: 32 is too much; lower it"}
    assert sum(trial.figure is not None for trial in found.trials) == 8
    assert found.best.settings["lora.r"] != 32


def test_grid_tries_every_combination_once(bench: Bench, made_up: Any) -> None:
    ranges = {"learning_rate": {"choices": [1e-4, 1e-3]}, "lora.r": {"low": 8, "high": 10}}
    found = sweep(made_up(sampler="grid", ranges=ranges, n_trials=50), bench.workspace, None, _quiet)
    tried = sorted((t.settings["learning_rate"], t.settings["lora.r"]) for t in found.trials)
    assert tried == [(rate, rank) for rate in (1e-4, 1e-3) for rank in (8, 9, 10)]
    assert found.best.settings == {"learning_rate": 1e-3, "lora.r": 8}


def test_search_without_any_figure_says_why(bench: Bench, made_up: Any) -> None:
    ranges = RANGES | {"lora.r": {"choices": [32]}}
    with pytest.raises(CouldNotRun, match=r"none of 2 trials gave a figure; the last: .*32 is too much"):
        sweep(made_up(bad=32, ranges=ranges, n_trials=2), bench.workspace, None, _quiet)


def test_figure_that_no_run_has_is_named_with_those_there_are(bench: Bench, made_up: Any) -> None:
    with pytest.raises(BadRequest, match=r"sweep\.metric: rougeL is no figure of these runs; known: loss"):
        sweep(made_up(metric="rougeL"), bench.workspace, None, _quiet)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"ranges": {"lora.rnk": {"choices": [8]}}}, "lora.rnk is not a setting; did you mean lora.r"),
        (
            {"ranges": {"learning_rate": {"low": -1.0, "high": 1.0}}},
            r"--set learning_rate=-1\.0: learning_rate",
        ),
        ({"ranges": {"learning_rate": {"low": 1.0, "high": 0.1}}}, "low 1.0 must be under high 0.1"),
        ({"ranges": {"lora.r": {"choices": [8], "low": 1}}}, "give choices, or low and high"),
        (
            {"ranges": {"learning_rate": {"low": 0.1, "high": 0.2}}, "sampler": "grid"},
            "grid needs choices or a step",
        ),
        ({"ranges": {"name": {"choices": ["a"]}}}, "name cannot be searched over"),
    ],
)
def test_search_that_cannot_work_is_refused_before_the_first_trial(
    bench: Bench, block: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(bench.recipe(sweep=block), bench.workspace, None, _quiet)


def test_recipe_without_a_sweep_says_what_to_add(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.root)
    result = CliRunner().invoke(app, ["sweep", str(bench.recipe())])
    assert isinstance(result.exception, ConfigError)
    assert "declares no sweep; add `sweep: {ranges: ...}`" in str(result.exception)


def test_sweep_block_is_no_part_of_what_a_run_is_made_from(bench: Bench) -> None:
    plain, searched = load_recipe(bench.recipe()), load_recipe(bench.recipe(sweep={"ranges": RANGES}))
    assert plain.model_dump() == searched.model_dump()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lora.r=8", ("lora.r", 8)),
        ("learning_rate=1e-4", ("learning_rate", 1e-4)),
        ("schedule=cosine", ("schedule", "cosine")),
        ("lora.target_modules=[q_proj, v_proj]", ("lora.target_modules", ["q_proj", "v_proj"])),
        ("system='1e-4'", ("system", "1e-4")),
        ("system=", ("system", None)),
    ],
)
def test_set_takes_a_name_and_a_yaml_value(text: str, expected: tuple[str, Any]) -> None:
    assert parse_override(text) == expected


def test_words_of_a_trial_set_what_was_drawn() -> None:
    drawn = {"lora.r": 8, "learning_rate": 0.00012, "schedule": "cosine", "lora.target_modules": ["q_proj"]}
    words = set_words(tuple(drawn.items()))[1::2]
    assert dict(parse_override(word) for word in words) == drawn


def test_set_replaces_settings_of_the_file_and_names_what_is_wrong(bench: Bench) -> None:
    path = bench.recipe()
    assert load_recipe(path, (("lora.r", 32), ("learning_rate", 1.0))).lora.r == 32
    with pytest.raises(ConfigError, match=r"recipe\.yaml --set lora\.rnk=3: lora\.rnk is not a setting"):
        load_recipe(path, (("lora.rnk", 3),))
    with pytest.raises(ConfigError, match="name is 'tiny-sft', not a group of settings"):
        load_recipe(path, (("name.x", 3),))


def test_set_on_the_command_line_reaches_the_adapters_lineage(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.root)
    result = CliRunner().invoke(
        app, ["finetune", str(bench.recipe()), "--set", "lora.r=8", "--set", "n_steps=2"]
    )
    assert result.exit_code == 0, result.output
    registry = Registry.of(bench.workspace)
    record = registry.adapter("tiny-sft")
    assert record.lora_rank == 8
    assert registry.lineage(record).metrics["n_steps"] == 2


@pytest.mark.walk
def test_sweep_through_the_command_line_leaves_the_best_adapter_as_the_newest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = {"learning_rate": {"choices": [1e-2, 1e-5]}}
    block = {"ranges": ranges, "metric": "train_loss", "sampler": "grid", "n_trials": 2}
    path = bench.recipe(sweep=block, n_steps=6)
    monkeypatch.chdir(bench.root)
    result = CliRunner().invoke(app, ["sweep", str(path), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["best"]["settings"] == {"learning_rate": 1e-2}
    registry = Registry.of(bench.workspace)
    newest = registry.adapter("tiny-sft")
    assert newest.adapter == found["best"]["adapter"]
    assert registry.lineage(newest).recipe["learning_rate"] == 1e-2
    assert len({t["adapter"] for t in found["trials"]}) == 2
