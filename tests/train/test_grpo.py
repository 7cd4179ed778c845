"""GRPO: its steps against TRL's own trainer, what rewards teach, and how users' reward functions fail."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoTokenizer, set_seed
from trl import GRPOTrainer
from typer.testing import CliRunner

from llmops.chat import render
from llmops.cli.commands import app
from llmops.errors import BadRequest, ConfigError, DataError
from llmops.records import Message
from llmops.registry.adapters import Registry
from llmops.train.methods.grpo import build_trainer, prompt_order, train_adapter, trainer_settings
from llmops.train.model import load_base
from llmops.train.rewards import RewardModel
from llmops.train.sampling import Draw, answer_ids, answer_seed
from tests.train.judging import AllFigures, ignore, set_up_rows, weights
from tests.train.support import PAIRS, Bench

REWARDS = '''\
"""Rewards of a test."""


def vowels(prompt, completion, reference):
    return sum(letter in "aeiou" for letter in completion) / 16


def brief(prompt: list, completion: str, reference: str) -> float:
    return -abs(len(completion) - len(reference)) / 10


def third(prompt, completion, reference):
    return 1.0 if prompt[-1]["content"].startswith("What") else "none"


def broken(prompt, completion, reference):
    return {}["price"]


def endless(prompt, completion, reference):
    return float("inf")


def two(prompt, completion):
    return 0.0
'''


def _method(*functions: str, **changes: Any) -> dict[str, Any]:
    rewards = [{"kind": "python", "function": f"rewards.py::{name}"} for name in functions]
    return {"kind": "grpo", "rewards": rewards, "n_answers": 4, "max_answer_tokens": 12} | changes


def _set_up(bench: Bench, method: dict[str, Any], parent: Path | None = None, **changes: Any) -> Any:
    (bench.root / "rewards.py").write_text(REWARDS)
    recipe, session, _ = set_up_rows(bench, method, parent, **changes)
    return recipe, session, prompt_order(recipe, session.examples.train, recipe.n_steps or 0)


@pytest.mark.parametrize(("loss", "beta"), [pytest.param("dapo", 0.0, marks=pytest.mark.walk), ("grpo", 0.1)])
def test_steps_equal_trls_own_trainer(bench: Bench, tiny_adapter: Path, loss: str, beta: float) -> None:
    """TRL's trainer encodes the rendered prompts itself; what it samples is drawn as ours, all else is its own."""
    method = _method("vowels", "brief", loss=loss, beta=beta, temperature=0.9)
    method["rewards"][1]["weight"] = 0.5
    recipe, session, order = _set_up(
        bench, method, tiny_adapter, n_steps=3, batch={"per_device": 4, "accumulation": 2}, learning_rate=2e-3,
        lora={"r": 8, "alpha": 16},
    )  # fmt: skip
    figures: list[dict[str, float]] = []
    ours = build_trainer(recipe, session, order, lambda s, n, f: figures.append(f))
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    contract = recipe.contract_on(session.base.contract)
    texts = [render(tokenizer, contract, [Message("user", q)], open_answer=True) for q, _ in PAIRS]
    reference = {text: answer for text, (_, answer) in zip(texts, PAIRS, strict=True)}

    def vowels(completions: list[str], **_: Any) -> list[float]:
        return [sum(letter in "aeiou" for letter in c) / 16 for c in completions]

    def brief(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [-abs(len(c) - len(reference[p])) / 10 for p, c in zip(prompts, completions, strict=True)]

    seen = AllFigures()
    plain = GRPOTrainer(
        model=PeftModel.from_pretrained(
            load_base(session.base, recipe, "cpu"), str(tiny_adapter), is_trainable=True
        ),
        reward_funcs=[vowels, brief],
        args=trainer_settings(recipe, session, len(order)),
        train_dataset=Dataset.from_dict({"prompt": [texts[i] for i in order]}),
        processing_class=tokenizer,
        callbacks=[seen],
    )
    steps = itertools.count()

    def drawn(prompt_ids: list[list[int]], *_: Any) -> tuple[list[list[int]], None]:
        """Two prompts a step, four answers each; in this test nothing else is asked of the plain trainer."""
        before = 2 * next(steps)
        seeds = [answer_seed(recipe.seed, before + i // 4, i % 4) for i in range(8)]
        return answer_ids(plain.model, prompt_ids, ours.limits, Draw(seeds, temperature=0.9)), None

    plain._generate_single_turn = drawn
    for trainer in (ours, plain):
        set_seed(recipe.seed)  # as each has it when it alone was built
        trainer.train()
    assert len(figures) == len(seen.lines) == 3
    for mine, theirs in zip(figures, seen.lines, strict=True):
        assert mine["reward"] == pytest.approx(theirs["reward"], rel=1e-5)
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert mine["answer_tokens"] == theirs["completions/mean_length"]
        if beta:
            assert mine["kl"] == pytest.approx(theirs["kl"], abs=1e-5)
    assert figures[0]["reward_std"] > 0
    expected = {k: v for k, v in weights(plain.model).items() if ".ref." not in k}
    for name, weight in weights(ours.model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=0.05 * recipe.learning_rate)


@pytest.mark.walk
def test_rewards_teach(bench: Bench) -> None:
    bench.rows([(f"Say {i}.", f"Value {i}.") for i in range(12)])
    recipe, session, _ = _set_up(
        bench, _method("vowels", n_answers=8, beta=0.0), n_steps=20, batch={"per_device": 16},
        learning_rate=2e-2, held_out_frac=0.25,
    )  # fmt: skip
    seen: list[dict[str, float]] = []
    end = train_adapter(recipe, session, lambda s, n, f: seen.append(f))
    assert len(session.examples.held_out) == 3
    first, last = (sum(f["reward"] for f in part) / 5 for part in (seen[:5], seen[-5:]))
    assert last > 2 * first
    assert end["held_out_reward"] > end["held_out_reward_start"] + 0.05
    assert end["train_reward"] == pytest.approx(sum(f["reward"] for f in seen[-10:]) / 10)


def _rewarded(bench: Bench, function: str) -> str:
    """What the command says about a recipe with this reward."""
    (bench.root / "rewards.py").write_text(REWARDS)
    path = bench.recipe(name="rl", method=_method(function), n_steps=2)
    done = CliRunner().invoke(app, ["finetune", str(path)])
    assert isinstance(done.exception, BadRequest)
    return str(done.exception)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("broken", ("rewards.py::broken: rows.jsonl:", "failed (KeyError: 'price')", "mend the function")),
        (
            "endless",
            ("rewards.py::endless: rows.jsonl:", "gave inf for the answer", "return a finite number"),
        ),
        ("two", ("method.rewards[0]: rewards.py::two: is called as two(prompt, completion, reference)",)),
        ("none", ("rewards.py: has no function none; correct function",)),
    ],
)
def test_faults_of_reward_functions_are_told_in_their_own_words_with_the_row(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, function: str, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(bench.root)
    said = _rewarded(bench, function)
    for word in words:
        assert word in said
    assert Registry.of(bench.workspace).adapters() == []


def test_bytes_of_the_reward_file_are_part_of_the_recipe(bench: Bench) -> None:
    recipe, _, _ = _set_up(bench, _method("vowels"))
    digest = hashlib.sha256(REWARDS.encode()).hexdigest()
    assert recipe.method.rewards[0].sha256 == digest
    (bench.root / "rewards.py").write_text(REWARDS + "\n")
    method = _method("vowels")
    method["rewards"][0]["sha256"] = digest
    with pytest.raises(ConfigError, match=r"rewards\[0\]: .*rewards.py has sha256 .*, the recipe asks for"):
        set_up_rows(bench, method)
    method["rewards"][0] = {"kind": "python", "function": "nowhere.py::vowels"}
    with pytest.raises(ConfigError, match=r"rewards\[0\]: .*nowhere.py: no such file; correct function"):
        set_up_rows(bench, method)


def test_step_of_broken_groups_is_refused(bench: Bench) -> None:
    with pytest.raises(
        ConfigError, match=r"a step of 6 answers .* is no whole number of groups of 4 answers"
    ):
        _set_up(bench, _method("vowels"), batch={"per_device": 6})


def test_prompt_without_room_for_an_answer_is_dropped_with_its_row(bench: Bench) -> None:
    path = bench.recipe(
        name="rl", method=_method("vowels", max_answer_tokens=200), max_tokens=256, drop_budget_frac=0.5
    )
    (bench.root / "rewards.py").write_text(REWARDS)
    done = CliRunner().invoke(app, ["finetune", str(path)], env={"LLMOPS_WORKSPACE": str(bench.root)})
    assert isinstance(done.exception, DataError)
    assert "leave no room for 200 (method.max_answer_tokens)" in str(done.exception)


@pytest.mark.walk
def test_command_line_trains_on_a_reward_model_named_by_reference(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.root)
    bench.prefer([(f"Say {i}.", f"Value {i}.", "!!!!!!") for i in range(12)])
    data = {"kind": "preferences", "name": "docs-train"}
    taste = bench.recipe("taste.yaml", name="taste", method={"kind": "reward"}, data=data, n_steps=6)
    judge = {"kind": "adapter", "adapter": "taste", "weight": 2.0}
    method = _method(rewards=[judge], beta=0.0)
    path = bench.recipe(name="rl", method=method, n_steps=3, batch={"per_device": 8}, held_out_frac=0.25)
    runner = CliRunner()
    for recipe in (taste, path):
        done = runner.invoke(app, ["finetune", str(recipe), "--json"])
        assert done.exit_code == 0, (done.output, done.exception)
    registry = Registry.of(bench.workspace)
    lineage = json.loads(done.stdout)["lineage"]
    record = registry.adapter("taste")
    assert lineage["recipe"]["method"]["rewards"][0]["adapter"] == record.adapter
    assert registry.adapter("rl").kind == "generating"
    # The figure is the reward model's own, twice: the likeliest answer read again by hand would score the same.
    probes = registry.reward_probes(record)
    assert RewardModel(bench.base, registry.verify(record)).rewards(probes.token_ids) == probes.rewards
    assert lineage["metrics"]["held_out_reward_start"] != 0
    method["rewards"][0]["adapter"] = "rl"
    bench.recipe(name="again", method=method)
    done = runner.invoke(app, ["finetune", "recipe.yaml"])
    assert "writes text and gives no rewards" in str(done.exception)


def _one_run(bench: Bench, name: str, save: bool, resume: bool) -> dict[str, torch.Tensor]:
    recipe, session, order = _set_up(bench, _method("vowels"), n_steps=4, batch={"per_device": 8})
    trainer = build_trainer(recipe, session, order, ignore)
    trainer.args.output_dir = str(bench.root / name)
    if save:
        trainer.args.save_strategy, trainer.args.save_steps = "steps", 2
        trainer.state.save_steps = 2
    trainer.train(resume_from_checkpoint=str(bench.root / name / "checkpoint-2") if resume else None)
    return weights(trainer.model)


@pytest.mark.walk
def test_sampled_answers_follow_from_the_seed_and_from_a_checkpoint(bench: Bench) -> None:
    unbroken = _one_run(bench, "one", save=True, resume=False)
    again = _one_run(bench, "two", save=False, resume=False)
    assert all(torch.equal(unbroken[k], again[k]) for k in unbroken)
    resumed = _one_run(bench, "one", save=False, resume=True)
    assert all(torch.equal(unbroken[k], resumed[k]) for k in unbroken)


@pytest.mark.walk
def test_bfloat16_and_four_bits_learn_too(bench: Bench) -> None:
    pytest.importorskip("bitsandbytes")
    recipe, session, _ = _set_up(
        bench, _method("vowels", beta=0.0), n_steps=2, batch={"per_device": 8}, learning_rate=5e-3,
        precision="bf16", quantization="nf4", gradient_checkpointing=True,
    )  # fmt: skip
    seen: list[dict[str, float]] = []
    train_adapter(recipe, session, lambda s, n, f: seen.append(f))
    assert all(f["grad_norm"] > 0 for f in seen)


def test_adapter_is_made_again_from_its_lineage_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled answers and all; the reward function's file is gone, and is read from what was kept."""
    monkeypatch.chdir(bench.root)
    (bench.root / "recipes").mkdir()
    (bench.root / "recipes" / "rewards.py").write_text(REWARDS)
    data = {"kind": "files", "paths": ["../rows.jsonl"]}
    path = bench.recipe("recipes/rl.yaml", name="rl", method=_method("vowels"), data=data, n_steps=2)
    runner = CliRunner()
    done = runner.invoke(app, ["finetune", str(path)])
    assert done.exit_code == 0, (done.output, done.exception)
    (bench.root / "recipes" / "rewards.py").unlink()
    again = runner.invoke(app, ["reproduce", "rl"])
    assert again.exit_code == 0, (again.output, again.exception)
    assert "EXACT" in again.stdout
    assert "WEIGHTS-EXACT" not in again.stdout
