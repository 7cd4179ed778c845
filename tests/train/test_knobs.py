"""Settings that shape training: schedules, optimizer, precision, quantisation, accumulation, seeds, other trackers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from transformers import TrainerCallback

from llmops.errors import ConfigError
from llmops.registry.adapters import Registry
from llmops.train.finetune import finetune
from llmops.train.methods.sft import build_trainer
from llmops.train.model import require_means
from llmops.train.recipe import load_recipe
from tests.train.support import Bench
from tests.train.test_sft import _ignore, _set_up


def _rates(bench: Bench, **changes: Any) -> list[float]:
    """The learning rate of each of eight steps, from a top of 1."""
    recipe, run, rows = _set_up(bench, n_steps=8, learning_rate=1.0, **changes)
    trainer = build_trainer(recipe, run, rows, _ignore)
    trainer.create_optimizer_and_scheduler(8)
    rates = []
    for _ in range(8):
        rates.append(float(trainer.lr_scheduler.get_last_lr()[0]))
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"schedule": "linear"}, [1 - i / 8 for i in range(8)]),
        ({"schedule": "constant", "warmup_frac": 0.25}, [0, 0.5, 1, 1, 1, 1, 1, 1]),
        (
            {"schedule": "cosine_with_min_lr", "min_lr_frac": 0.2},
            [0.2 + 0.8 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)],
        ),
        (
            {"schedule": "warmup_stable_decay", "warmup_frac": 0.25, "decay_frac": 0.5, "min_lr_frac": 0.1},
            [0.1, 0.55, 1, 1, *(0.1 + 0.9 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4))],
        ),
        (
            {"schedule": "inverse_sqrt", "warmup_frac": 0.25},
            [0, 0.5, *(math.sqrt(2 / i) for i in range(2, 8))],
        ),
    ],
    ids=lambda value: value["schedule"] if isinstance(value, dict) else "",
)
def test_learning_rate_follows_its_schedule(
    bench: Bench, changes: dict[str, Any], rates: list[float]
) -> None:
    assert _rates(bench, **changes) == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "sine"}, "schedule: .*cosine"),
        ({"min_lr_frac": 0.1}, "min_lr_frac: is for schedule"),
        ({"decay_frac": 0.5}, "decay_frac: is for schedule"),
        ({"schedule": "warmup_stable_decay", "warmup_frac": 0.9}, "come to more than 1"),
        ({"adam_betas": [0.9, 1.0]}, "less than 1"),
        ({"max_grad_norm": 0}, "max_grad_norm"),
        ({"early_stopping": {"every_n_steps": 2}}, "set held_out_frac over 0"),
        ({"checkpoint": {"every_n_steps": 0}}, r"checkpoint\.every_n_steps"),
        ({"checkpoint": {"evry_n_steps": 1}}, r"did you mean checkpoint\.every_n_steps"),
    ],
)
def test_settings_that_do_nothing_or_fit_nothing_are_refused(
    bench: Bench, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(bench.recipe(**changes))


def test_one_step_of_adamw_is_that_of_the_paper(bench: Bench) -> None:
    """Loshchilov 2019 (arXiv:1711.05101), algorithm 2, computed here from the clipped gradient."""
    settings = {"weight_decay": 0.5, "adam_betas": [0.5, 0.7], "max_grad_norm": 0.01}
    recipe, run, rows = _set_up(bench, n_steps=2, learning_rate=0.1, schedule="constant", **settings)
    trainer = build_trainer(recipe, run, rows, _ignore)
    before: dict[str, torch.Tensor] = {}
    after: list[dict[str, torch.Tensor]] = []
    grads: list[dict[str, torch.Tensor]] = []
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}

    class Spy(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            grads.append({n: p.grad.clone() for n, p in trained.items()})

        def on_step_end(self, *_: Any, **__: Any) -> None:
            after.append({n: p.detach().clone() for n, p in trained.items()})

    before = {n: p.detach().clone() for n, p in trained.items()}
    trainer.add_callback(Spy())
    trainer.train()
    length = math.sqrt(sum(float((g**2).sum()) for g in grads[0].values()))
    assert length == pytest.approx(0.01, rel=1e-3)
    for name, was in before.items():
        moved = was * (1 - 0.1 * 0.5) - 0.1 * grads[0][name] / (grads[0][name].abs() + 1e-8)
        torch.testing.assert_close(after[0][name], moved, rtol=1e-4, atol=1e-5)
        m = (0.5 * 0.5 * grads[0][name] + 0.5 * grads[1][name]) / (1 - 0.5**2)
        v = (0.7 * 0.3 * grads[0][name] ** 2 + 0.3 * grads[1][name] ** 2) / (1 - 0.7**2)
        moved = after[0][name] * (1 - 0.1 * 0.5) - 0.1 * m / (v.sqrt() + 1e-8)
        torch.testing.assert_close(after[1][name], moved, rtol=1e-4, atol=1e-5)


def test_four_passes_make_the_step_of_one_on_rows_of_unequal_length(bench: Bench) -> None:
    weights = []
    for batch in ({"per_device": 8}, {"per_device": 2, "accumulation": 4}):
        recipe, run, rows = _set_up(bench, n_steps=3, batch=batch | {"group_by_length": False})
        trainer = build_trainer(recipe, run, rows, _ignore)
        trainer.train()
        weights.append(get_peft_model_state_dict(trainer.model))
    # AdamW divides by the gradient's size, so where that is near 0 the order of a sum shows: 1e-4 is 1 % of a step.
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-4, atol=1e-4)


def test_first_weights_come_from_the_recipes_seed_alone(bench: Bench) -> None:
    found = []
    for seed, noise in ((3, 0), (3, 1), (4, 1)):
        random.seed(noise)
        np.random.seed(noise)
        torch.manual_seed(noise)
        recipe, run, rows = _set_up(bench, seed=seed)
        trainer = build_trainer(recipe, run, rows, _ignore)
        found.append(
            {n: p.clone() for n, p in get_peft_model_state_dict(trainer.model).items() if "lora_A" in n}
        )
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not any(torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_fp16_on_a_cpu_is_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="precision: fp16 needs a CUDA device"):
        finetune(bench.recipe(precision="fp16"), bench.workspace)


def test_eight_bit_base_trains_an_adapter_that_acts_on_the_whole_one(bench: Bench) -> None:
    pytest.importorskip("torchao")
    recipe = bench.recipe(quantization="int8", precision="bf16", n_steps=8)
    record = finetune(recipe, bench.workspace)
    (folder,) = bench.workspace.runs.iterdir()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[7]["loss"] < 0.7 * lines[0]["loss"]
    assert (
        Registry.of(bench.workspace).lineage(record).metrics["effect_nats"] > 0.1
    )  # probed on the fp32 base


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": "int8"}, r"needs torchao, which is not installed; pip install torchao==0\.18\.0"),
        ({"report_to": ["crayon"]}, "crayon is no tracker of transformers'; it knows .*tensorboard"),
        ({"report_to": ["neptune"]}, "neptune is not installed"),
    ],
)
def test_what_is_not_installed_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("llmops.train.model.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        require_means(load_recipe(bench.recipe(**changes)), "cpu")


def test_curves_reach_a_tracker_of_transformers(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    finetune(bench.recipe(report_to=["tensorboard"]), bench.workspace)
    shown = EventAccumulator(str(tmp_path / "board"))
    shown.Reload()
    (folder,) = bench.workspace.runs.iterdir()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[:-1]]
    losses = {event.step: event.value for event in shown.Scalars("train/loss")}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in lines})
    assert "train/supervised_tokens_per_s" in shown.Tags()["scalars"]


def test_curve_counts_tokens_and_those_that_are_trained_on(bench: Bench) -> None:
    bench.rows([("one", "Return 1."), ("three", "Return the number three.")])
    finetune(bench.recipe(batch={"per_device": 2, "group_by_length": False}, n_steps=2), bench.workspace)
    (folder,) = bench.workspace.runs.iterdir()
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    # The tokenizer is one token a byte; a turn is <|im_start|>role\n...<|im_end|>\n, answers are scored with their end.
    answers = ["Return 1.", "Return the number three."]
    assert first["n_supervised_tokens"] == sum(len(a) + 1 for a in answers)
    system = len("system\nYou are a tiny assistant.\n") + 2
    turns = sum(
        len(f"user\n{q}\nassistant\n{a}\n") + 4 for q, a in zip(("one", "three"), answers, strict=True)
    )
    assert first["n_tokens"] == 2 * system + turns
    assert first["tokens_per_s"] > first["supervised_tokens_per_s"] > 0


def test_early_stopping_without_a_held_out_row_is_refused_before_weights_load(bench: Bench) -> None:
    path = bench.recipe(held_out_frac=0.1, early_stopping={"every_n_steps": 1})
    with pytest.raises(ConfigError, match=r"early_stopping: no row is held out .*raise held_out_frac"):
        finetune(path, bench.workspace)
