"""Probes: log-probabilities against a forward pass by hand, and adapters that do nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from llmops.errors import TrainingFailed
from llmops.train.probes import (
    MAX_PROBE_TOKENS,
    N_PROBES,
    choose_probes,
    compute_probes,
    effect_nats,
    require_effect,
)
from tests.tiny import build_tiny_adapter

ROWS = ([256, 72, 105, 257], [65, 66, 67, 68, 69, 70])


def test_probes_equal_a_forward_pass_by_hand(tiny_model: Path, tiny_adapter: Path) -> None:
    probes = compute_probes(tiny_model, tiny_adapter, ROWS)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)

    def by_hand(model: torch.nn.Module, row: list[int]) -> list[float]:
        with torch.no_grad():
            table = model(torch.tensor([row])).logits[0].log_softmax(-1)
        return [float(table[t - 1, row[t]]) for t in range(1, len(row))]

    for i, row in enumerate(ROWS):
        assert probes.base_logprobs[i] == pytest.approx(by_hand(base, row), abs=1e-5)
    adapted = PeftModel.from_pretrained(base, str(tiny_adapter))
    for i, row in enumerate(ROWS):
        assert probes.adapter_logprobs[i] == pytest.approx(by_hand(adapted, row), abs=1e-5)
    assert probes.token_ids == tuple(tuple(row) for row in ROWS)


def test_effect_is_the_mean_absolute_difference_a_token(tiny_model: Path, tiny_adapter: Path) -> None:
    probes = compute_probes(tiny_model, tiny_adapter, ROWS)
    known = replace(probes, base_logprobs=((-1.0, -2.0), (-3.0,)), adapter_logprobs=((-1.5, -1.0), (-3.0,)))
    assert effect_nats(known) == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert require_effect(probes, "adapter") == effect_nats(probes) > 0.1


def test_adapter_that_changes_nothing_is_refused_with_the_number(tiny_model: Path, tmp_path: Path) -> None:
    probes = compute_probes(tiny_model, build_tiny_adapter(tiny_model, tmp_path / "none", scale=0.0), ROWS)
    assert effect_nats(probes) == 0.0
    with pytest.raises(TrainingFailed, match="adapter x: has no effect: it changes 0 nats a token"):
        require_effect(probes, "adapter x")


def test_adapter_whose_answers_are_not_numbers_is_refused(tiny_model: Path, tiny_adapter: Path) -> None:
    probes = compute_probes(tiny_model, tiny_adapter, ROWS)
    broken = replace(probes, adapter_logprobs=((math.nan,) * 3, probes.adapter_logprobs[1]))
    with pytest.raises(TrainingFailed, match="not finite"):
        require_effect(broken, "adapter x")


def test_conversations_that_fit_are_chosen_before_long_ones_are_cut() -> None:
    long, short = list(range(200)), [list(range(i, i + 10)) for i in range(5)]
    chosen = choose_probes([long, *short, [1]])
    assert chosen == (*(tuple(s) for s in short), tuple(long[:MAX_PROBE_TOKENS]))
    assert choose_probes([[i, i] for i in range(20)]) == tuple((i, i) for i in range(N_PROBES))
    with pytest.raises(TrainingFailed, match="no conversation of two tokens"):
        choose_probes([[1], []])
