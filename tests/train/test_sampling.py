"""Sampled answers: by the model's probabilities, and the same ones whatever is drawn beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM

from llmops.train.sampling import Draw, Limits, SeededNoise, answer_ids, answer_seed
from tests.tiny import IM_END_ID

PROMPTS = [list(b"What does open do?"), list(b"?"), list(b"What does close do, and when?")]
SEEDS = [answer_seed(7, place, 0) for place in range(3)]
LIMITS = Limits(max_tokens=10, ends=(IM_END_ID,), pad=IM_END_ID)


def test_tokens_are_drawn_by_their_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")])
    n = 5000
    noise = SeededNoise([answer_seed(0, i, 0) for i in range(n)], torch.device("cpu"))
    drawn = noise(torch.zeros(n, 1), logits.expand(n, -1)).argmax(dim=-1)
    counts = torch.bincount(drawn, minlength=5)
    assert counts[4] == 0  # ruled out
    assert chisquare(counts[:4], n * logits.double().softmax(-1)[:4]).pvalue > 0.01


@pytest.mark.parametrize("draw", [None, 1.0, 0.7])
def test_answer_does_not_depend_on_its_neighbours(tiny_model: Path, draw: float | None) -> None:
    """Padded beside longer prompts, last in line or alone: the same tokens."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()

    def answers(which: list[int]) -> list[list[int]]:
        how = None if draw is None else Draw([SEEDS[i] for i in which], temperature=draw, top_p=0.95)
        return answer_ids(model, [PROMPTS[i] for i in which], LIMITS, how)

    together = answers([0, 1, 2])
    assert answers([2, 1]) == [together[2], together[1]]
    assert [answers([i])[0] for i in range(3)] == together
    if draw is not None:
        assert together != answer_ids(model, PROMPTS, LIMITS)


def test_every_answer_has_a_seed_of_its_own() -> None:
    seeds = {answer_seed(s, place, copy) for s in range(3) for place in range(20) for copy in range(8)}
    assert len(seeds) == 3 * 20 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
