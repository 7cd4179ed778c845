"""KTO: its loss and steps against TRL's own trainer, what it learns, and what it starts from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoTokenizer
from trl import KTOTrainer

from llmops.errors import ConfigError
from llmops.train.methods.kto import (
    Ratios,
    batch_loss,
    build_trainer,
    paired_answers,
    train_adapter,
    trainer_settings,
)
from llmops.train.model import load_base
from llmops.train.recipe import Kto, Recipe, load_recipe
from llmops.train.rows import Judged
from llmops.train.session import Session
from tests.train.judging import STYLE, AllFigures, ignore, set_up, weights
from tests.train.support import Bench


def _trl(bench: Bench, recipe: Recipe, session: Session[Judged], order: list[int], seen: AllFigures) -> Any:
    """TRL's own trainer, untouched: it encodes texts itself and keeps the reference as a second adapter."""
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    rows = session.examples.train
    texts = {
        "prompt": [tokenizer.decode(row.prompt_ids) for row in rows],
        "completion": [tokenizer.decode(row.answer_ids) for row in rows],
        "label": [row.good for row in rows],
    }
    return KTOTrainer(
        model=PeftModel.from_pretrained(
            load_base(session.base, recipe, "cpu"), str(session.parent), is_trainable=True
        ),
        args=trainer_settings(recipe, session, len(order)),
        train_dataset=Dataset.from_dict(texts).select(order),
        processing_class=tokenizer,
        callbacks=[seen],
    )


def test_loss_and_weights_equal_trls_own_trainer(bench: Bench, tiny_adapter: Path) -> None:
    recipe, session, order = set_up(
        bench, "kto", tiny_adapter, method={"beta": 0.3, "good_weight": 1.0, "bad_weight": 1.2}, n_steps=4,
        batch={"per_device": 4, "accumulation": 2}, lora={"r": 8, "alpha": 16},
    )  # fmt: skip
    seen, figures = AllFigures(), []
    ours = build_trainer(recipe, session, order, lambda s, n, f: figures.append(f))
    plain = _trl(bench, recipe, session, order, seen)
    first, second = weights(ours.model), weights(plain.model)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    ours.train()
    plain.train()
    assert len(figures) == len(seen.lines) == 4
    for mine, theirs in zip(figures, seen.lines, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert mine["kl"] == pytest.approx(theirs["kl"], abs=2e-4)
        if "rewards/margins" in theirs:  # neither says one of a step whose passes are of one kind each
            assert mine["margin"] == pytest.approx(theirs["rewards/margins"], abs=2e-4)
    assert any("margin" in mine for mine in figures)
    assert any(mine["kl"] > 0 for mine in figures)
    trained, expected = weights(ours.model), weights(plain.model)
    for name, weight in trained.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=0.05 * recipe.learning_rate)
    assert any(not torch.equal(first[name], trained[name]) for name in first)


def test_loss_of_a_batch_is_that_of_the_paper() -> None:
    """Beta 0.5, common point 1: a good answer at ratio 3 and a bad one at -1 are both 2 nats on their side of it."""
    ratios = Ratios(torch.tensor([3.0, -1.0]), torch.tensor([0.5, 1.5]), torch.tensor([True, False]))
    loss, figures = batch_loss(Kto(kind="kto", beta=0.5, good_weight=2.0), ratios)
    worth = 1 - 1 / (1 + math.exp(-1.0))
    assert float(loss) == pytest.approx((2 * worth + worth) / 2)
    assert figures == pytest.approx({"kl": 1.0, "accuracy": 1.0, "margin": 0.5 * 4})


def test_common_point_is_never_under_zero() -> None:
    ratios = Ratios(torch.tensor([0.0]), torch.tensor([-5.0]), torch.tensor([True]))
    loss, figures = batch_loss(Kto(kind="kto"), ratios)
    assert (float(loss), figures["kl"]) == (0.5, 0.0)
    assert "margin" not in figures


def test_prompts_are_paired_with_answers_of_their_own_pass() -> None:
    rows = [Judged((i,), (10 + i,), True, "g", "s") for i in range(5)]
    assert paired_answers(rows, 3) == [(12,), (10,), (11,), (14,), (13,)]


def test_both_answers_of_a_pair_are_learnt_one_by_one(bench: Bench) -> None:
    _, session, _ = set_up(bench, "kto")
    rows = session.examples.train
    assert [row.good for row in rows] == [True, False] * 6
    assert rows[0].prompt_ids == rows[1].prompt_ids
    assert rows[0].answer_ids[:-1] == tuple(b"Open the file.")


@pytest.mark.walk
def test_unseen_answers_are_told_apart_after_training(bench: Bench) -> None:
    recipe, session, _ = set_up(
        bench, "kto", pairs=STYLE, n_steps=20, batch={"per_device": 8}, learning_rate=3e-3, held_out_frac=0.25
    )
    seen: list[dict[str, float]] = []
    end = train_adapter(recipe, session, lambda s, n, f: seen.append(f))
    assert seen[0]["loss"] == pytest.approx(0.5, rel=1e-5)
    assert seen[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert (len(session.examples.held_out), end["n_good"], end["n_bad"]) == (20, 30, 30)
    assert end["held_out_loss_start"] == pytest.approx(0.5)
    assert end["held_out_loss"] < 0.4
    assert end["held_out_margin"] > 0.3
    assert end["held_out_accuracy"] > 0.8


def test_reference_is_the_adapter_that_is_continued(bench: Bench, tiny_adapter: Path) -> None:
    recipe, session, order = set_up(
        bench, "kto", tiny_adapter, lora={"r": 8, "alpha": 16}, n_steps=1, batch={"per_device": 3}
    )
    trainer = build_trainer(recipe, session, order, ignore)
    parent = PeftModel.from_pretrained(load_base(session.base, recipe, "cpu"), str(tiny_adapter)).eval()

    def by_hand(prompt: list[int], answer: list[int]) -> float:
        with torch.no_grad():
            table = parent(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return sum(float(table[len(prompt) + i - 1, token]) for i, token in enumerate(answer))

    for row in trainer.train_dataset:
        assert row["ref_logps"] == pytest.approx(by_hand(row["prompt_ids"], row["completion_ids"]), rel=1e-5)
        paired = by_hand(row["prompt_ids"], row["KL_completion_ids"])
        assert row["ref_KL_logps"] == pytest.approx(paired, rel=1e-5)


@pytest.mark.walk
def test_four_bits_learn_too(bench: Bench) -> None:
    pytest.importorskip("bitsandbytes")
    recipe, session, _ = set_up(
        bench, "kto", pairs=STYLE, n_steps=6, batch={"per_device": 4}, learning_rate=5e-3,
        precision="bf16", quantization="nf4",
    )  # fmt: skip
    seen: list[dict[str, float]] = []
    train_adapter(recipe, session, lambda s, n, f: seen.append(f))
    assert seen[0]["loss"] == pytest.approx(0.5, abs=0.02)
    assert seen[-1]["loss"] < 0.47


def test_one_answer_a_pass_has_no_common_point(bench: Bench) -> None:
    path = bench.dpo_recipe(method={"kind": "kto"}, batch={"per_device": 1})
    with pytest.raises(
        ConfigError, match=r"batch.per_device: kto compares the answers of one pass; give 2 or more"
    ):
        load_recipe(path)
