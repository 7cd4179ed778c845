"""A pair read with its prompt once says what its two sides say in rows of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM
from trl.trainer.dpo_trainer import DataCollatorForPreference

from llmops.train import cross_entropy
from llmops.train.methods.dpo import score
from llmops.train.shared_prompt import PADDING, SharedPromptCollator, pair_collator

PAIRS: list[dict[str, Any]] = [
    {"prompt_ids": [5, 9, 70, 33], "chosen_ids": [80, 101, 7, 257], "rejected_ids": [64, 257]},
    {"prompt_ids": [8, 3, 44, 32, 90, 99, 12], "chosen_ids": [257], "rejected_ids": [41, 42, 43, 44, 257]},
    {"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [2, 3, 4]},
]
SLOPE = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 0.25])


def _model(folder: Path, attention: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).requires_grad_(False)
    model.model.layers[0].self_attn.v_proj.weight.requires_grad_()
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("chunked", [False, True])
def test_scores_and_gradient_are_those_of_two_rows_a_pair(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, attention: str, chunked: bool
) -> None:
    if chunked:
        monkeypatch.setitem(cross_entropy.LOGITS_AT_ONCE, "cpu", 4 * 258)
    found, gradients = [], []
    for collator in (SharedPromptCollator(0), DataCollatorForPreference(0)):
        model = _model(tiny_model, attention)
        scores = score(model, model.get_output_embeddings(), collator(PAIRS))
        found.append(scores)
        learnt = model.model.layers[0].self_attn.v_proj.weight
        gradients.append(torch.autograd.grad((SLOPE * scores.logprobs).sum(), learnt)[0])
    assert found[0].n_tokens.tolist() == found[1].n_tokens.tolist() == [4, 1, 2, 2, 5, 3]
    torch.testing.assert_close(found[0].logprobs, found[1].logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["chosen_ids", "rejected_ids"])
def test_a_poisoned_answer_changes_no_other_answer_by_one_bit(
    tiny_model: Path, attention: str, side: str
) -> None:
    model = _model(tiny_model, attention)
    before = score(model, model.get_output_embeddings(), SharedPromptCollator(0)(PAIRS)).logprobs
    for i in range(len(PAIRS)):
        poisoned = [
            pair | {side: [(t + 91) % 256 for t in pair[side]]} if j == i else pair
            for j, pair in enumerate(PAIRS)
        ]
        after = score(model, model.get_output_embeddings(), SharedPromptCollator(0)(poisoned)).logprobs
        same = [bool(a == b) for a, b in zip(before, after, strict=True)]
        assert same == [j != i + (0 if side == "chosen_ids" else len(PAIRS)) for j in range(2 * len(PAIRS))]


def test_a_prompt_is_read_once_and_numbers_are_passed_on() -> None:
    rows = [pair | {"ref_chosen_logps": -1.5 - i} for i, pair in enumerate(PAIRS)]
    batch = SharedPromptCollator(0)(rows)
    assert batch["ref_chosen_logps"].tolist() == [-1.5, -2.5, -3.5]
    read = batch["parts"] != PADDING
    assert read.sum(dim=1).tolist() == [4 + 4 + 2, 7 + 1 + 5, 1 + 2 + 3]
    assert batch["position_ids"][0][read[0]].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5]


def test_models_that_see_through_windows_read_two_rows_a_pair(tiny_model: Path) -> None:
    windowed = MistralForCausalLM(
        MistralConfig(
            vocab_size=258, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, sliding_window=4,
        )
    )  # fmt: skip
    assert pair_collator(windowed, 0) is None
    assert pair_collator(_model(tiny_model, "sdpa"), 7) == SharedPromptCollator(7)
