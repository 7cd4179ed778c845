"""Answers of a model under training: the likeliest ones, or sampled ones that follow from a seed of their own each.

What is drawn for an answer depends on its seed alone, not on which other answers are drawn beside it, by how many
processes, or on what was drawn before. Knows nothing of recipes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from trl.models.utils import disable_gradient_checkpointing


@dataclass(frozen=True)
class Draw:
    """How answers are sampled; `seeds` has one for each prompt."""

    seeds: Sequence[int]
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Limits:
    """Where an answer ends: behind one of these tokens, or after so many. `pad` fills what is left."""

    max_tokens: int
    ends: Sequence[int]
    pad: int


class SeededNoise(LogitsProcessor):  # type: ignore[misc]
    """Adds Gumbel noise to every score, from one stream of random numbers a row: the largest sum is a sample.

    Of scores s it takes token i with probability softmax(s)_i (Gumbel 1954; Maddison 2014, arXiv:1411.0030).
    Rounding moves a sample only where two sums are as near as it, which inverting the distribution would not give.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        """One stream for each row, on the device where its scores are."""
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores with their noise [B, V]; a token that was ruled out (-inf) stays so."""
        del input_ids
        waits = torch.empty_like(scores, dtype=torch.float32)
        for row, stream in zip(waits, self.streams, strict=True):
            row.exponential_(generator=stream)
        return scores.float() - waits.clamp_min(torch.finfo(torch.float32).tiny).log()


def answer_seed(seed: int, place: int, copy: int) -> int:
    """The seed of one sampled answer, in [0, 2**63).

    Args:
        seed: the recipe's.
        place: of its prompt among all that a run asks, in their order.
        copy: of the answers to that prompt.
    """
    digest = hashlib.sha256(f"answer:{seed}:{place}:{copy}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def answer_ids(
    model: Any, prompts: Sequence[Sequence[int]], limits: Limits, draw: Draw | None = None
) -> list[list[int]]:
    """Token ids of the model's answer to each prompt, with the end token if it came to one.

    Args:
        model: PEFT's, not wrapped; its mode (dropout) is the caller's.
        prompts: token ids.
        limits: where answers end.
        draw: how they are sampled; None takes the likeliest token every time.
    """
    width, device = max(map(len, prompts)), next(model.parameters()).device
    rows = [[limits.pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    settings = GenerationConfig(
        max_new_tokens=limits.max_tokens,
        do_sample=False,
        pad_token_id=limits.pad,
        eos_token_id=list(limits.ends),
    )
    with torch.no_grad(), disable_gradient_checkpointing(model, None):
        found = model.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(masks, device=device),
            generation_config=settings,
            logits_processor=_processors(draw, device),
        )
    return [_until_end(ids, limits.ends) for ids in found[:, width:].tolist()]


def _processors(draw: Draw | None, device: torch.device) -> LogitsProcessorList:
    """What is done to scores before the largest is taken, in the order in which transformers samples."""
    found = LogitsProcessorList()
    if draw is None:
        return found
    if draw.temperature != 1:
        found.append(TemperatureLogitsWarper(draw.temperature))
    if draw.top_p < 1:
        found.append(TopPLogitsWarper(draw.top_p))
    found.append(SeededNoise(draw.seeds, device))
    return found


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    end = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[:end]
