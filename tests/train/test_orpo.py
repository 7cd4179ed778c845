"""ORPO: its loss and steps against TRL's own trainer, and what it learns without a reference."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoTokenizer

from llmops.train.methods.dpo import Scores
from llmops.train.methods.orpo import batch_loss, build_trainer, log1mexp, train_adapter
from llmops.train.model import load_base
from llmops.train.recipe import Orpo
from llmops.train.session import shared_settings
from tests.train.judging import STYLE, AllFigures, ignore, set_up, weights
from tests.train.support import Bench

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.walk), 2])
def test_loss_and_weights_equal_trls_own_trainer(bench: Bench, tiny_adapter: Path, accumulation: int) -> None:
    """TRL learns prompts too, which are one token here: no position of theirs is left to learn."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    recipe, session, order = set_up(
        bench, "orpo", tiny_adapter, method={"beta": 0.4}, n_steps=4, lora={"r": 8, "alpha": 16},
        batch={"per_device": 2, "accumulation": accumulation},
    )  # fmt: skip
    start = session.base.contract.eos_token_ids[0] - 1  # <|im_start|>, the byte-level tokenizer's begin token
    pairs = tuple(replace(pair, prompt_ids=(start,)) for pair in session.examples.train)
    session = replace(session, examples=replace(session.examples, train=pairs))
    figures: list[dict[str, float]] = []
    ours = build_trainer(recipe, session, order, lambda s, n, f: figures.append(f))
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    texts = {
        "prompt": [tokenizer.decode(pair.prompt_ids) for pair in pairs],
        "chosen": [tokenizer.decode(pair.chosen_ids) for pair in pairs],
        "rejected": [tokenizer.decode(pair.rejected_ids) for pair in pairs],
    }
    settings = shared_settings(recipe, session, 4) | {"max_length": 512}
    settings.pop("pad_to_multiple_of")
    seen = AllFigures()
    plain = ORPOTrainer(
        model=PeftModel.from_pretrained(
            load_base(session.base, recipe, "cpu"), str(tiny_adapter), is_trainable=True
        ),
        args=ORPOConfig(**settings, beta=0.4),
        train_dataset=Dataset.from_dict(texts).select(order),
        processing_class=tokenizer,
        callbacks=[seen],
    )
    first = weights(ours.model)
    assert all(torch.equal(first[k], w) for k, w in weights(plain.model).items())
    ours.train()
    plain.train()
    assert len(figures) == len(seen.lines) == 4
    for mine, theirs in zip(figures, seen.lines, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert mine["margin"] == pytest.approx(theirs["log_odds_chosen"], abs=2e-4)
    trained, expected = weights(ours.model), weights(plain.model)
    for name, weight in trained.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=0.05 * recipe.learning_rate)
    assert any(not torch.equal(first[name], trained[name]) for name in first)


def test_loss_of_a_pair_is_that_of_the_paper() -> None:
    """Chosen: 2 tokens of probability 1/2, odds 1. Rejected: 3 tokens of 1/4, odds 1/3. So their ratio is 3."""
    policy = Scores(torch.tensor([2 * math.log(1 / 2), 3 * math.log(1 / 4)]), torch.tensor([2, 3]))
    loss, figures = batch_loss(Orpo(kind="orpo", beta=0.2), policy)
    assert figures == pytest.approx({"margin": math.log(3), "accuracy": 1.0})
    assert float(loss) == pytest.approx(math.log(2) - 0.2 * math.log(3 / 4))


def test_log_of_one_minus_exp_is_exact_and_has_gradients_at_both_ends() -> None:
    x = torch.tensor([-1e-6, -0.1, -0.7, -5.0, -80.0], requires_grad=True)
    found = log1mexp(x)
    expected = [math.log(-math.expm1(v)) if v > -0.7 else math.log1p(-math.exp(v)) for v in x.tolist()]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    found.sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


def test_certain_answers_do_not_break_the_loss() -> None:
    logprobs = torch.tensor([0.0, -3.0], requires_grad=True)
    loss, _ = batch_loss(Orpo(kind="orpo"), Scores(logprobs, torch.tensor([4, 4])))
    loss.backward()
    loss = loss.detach()
    assert logprobs.grad is not None
    assert math.isfinite(float(loss))
    assert bool(torch.isfinite(logprobs.grad).all())


def test_unseen_pairs_are_told_apart_and_chosen_answers_learnt(bench: Bench) -> None:
    recipe, session, _ = set_up(
        bench,
        "orpo",
        pairs=STYLE,
        n_steps=20,
        batch={"per_device": 4},
        learning_rate=3e-3,
        held_out_frac=0.25,
    )
    seen: list[dict[str, float]] = []
    end = train_adapter(recipe, session, lambda s, n, f: seen.append(f))
    assert len(session.examples.held_out) == 10
    assert end["held_out_accuracy"] == 1.0
    assert end["held_out_chosen_nll"] < 0.5 * end["held_out_chosen_nll_start"]
    assert end["held_out_margin"] > end["held_out_margin_start"] + 0.5
    assert seen[-1]["loss"] < seen[0]["loss"]


@pytest.mark.walk
def test_four_bits_learn_too(bench: Bench) -> None:
    pytest.importorskip("bitsandbytes")
    recipe, session, _ = set_up(
        bench, "orpo", pairs=STYLE, n_steps=5, batch={"per_device": 4}, learning_rate=5e-3, held_out_frac=0.1,
        precision="bf16", quantization="nf4",
    )  # fmt: skip
    end = train_adapter(recipe, session, ignore)
    assert end["held_out_chosen_nll"] < end["held_out_chosen_nll_start"] - 1
