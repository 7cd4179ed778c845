"""Reward adapters: read from their folders they give a number for a text, in training as in their proof.

Loads models from folders; writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmops.errors import TrainingFailed
from llmops.records import PromptContract, RewardProbes
from llmops.train.probes import choose_probes
from llmops.train.rows import Pair

MIN_SPREAD = 1e-3
"""Difference between the highest and the lowest reward of the probes below which a reward model tells nothing apart; a
pair's loss at a margin of 0.001 is ln 2 to three digits."""

TokenRows = Sequence[Sequence[int]]


def reward_pad_id(contract: PromptContract) -> int:
    """The token that fills up rows of a reward model: one that ends no answer.

    transformers reads a reward at the last token that is not padding. Where a base pads with its end token, as many do,
    that would be the token before it, and whether an answer ends could not count.
    """
    return next(
        token for token in range(len(contract.eos_token_ids) + 1) if token not in contract.eos_token_ids
    )


class RewardModel:
    """A base with a reward adapter, in fp32."""

    def __init__(self, base_path: Path, adapter_dir: Path, device: str = "cpu") -> None:
        """Load both from their folders."""
        import torch
        from peft import PeftModel

        from llmops.train.model import load_with_head

        base = load_with_head(base_path, dtype=torch.float32, local_files_only=True)
        # One row is read at a time, so that its last token is the end of its answer whatever the base pads with.
        base.config.get_text_config().pad_token_id = None
        self._model: Any = PeftModel.from_pretrained(base.to(device), str(adapter_dir)).eval()
        self._device = device

    def rewards(self, token_ids: TokenRows) -> tuple[float, ...]:
        """The reward of each sequence, read at its last token."""
        import torch

        found = []
        for row in token_ids:
            ids = torch.tensor([list(row)], device=self._device)
            with torch.no_grad():
                found.append(float(self._model(input_ids=ids, use_cache=False).logits[0, 0]))
        return tuple(found)


def compute_reward_probes(
    base_path: Path, adapter_dir: Path, pairs: Sequence[Pair], device: str = "cpu"
) -> RewardProbes:
    """Rewards of some answers of these pairs, chosen and rejected, under an adapter read from its folder."""
    sides = [pair.prompt_ids + answer for pair in pairs for answer in (pair.chosen_ids, pair.rejected_ids)]
    token_ids = choose_probes(sides)
    return RewardProbes(token_ids, RewardModel(base_path, adapter_dir, device).rewards(token_ids))


def require_spread(probes: RewardProbes, where: str) -> float:
    """How far the probes' rewards lie apart, refused when they do not.

    Raises:
        TrainingFailed: the highest less the lowest is under `MIN_SPREAD` or not finite; `where` names the adapter.
    """
    spread = max(probes.rewards) - min(probes.rewards)
    if not math.isfinite(spread):
        raise TrainingFailed(f"{where}: its rewards are not finite ({spread}); lower the learning rate")
    if spread < MIN_SPREAD:
        raise TrainingFailed(
            f"{where}: tells nothing apart: its rewards of the probes differ by {spread:.2g}, {MIN_SPREAD} is the "
            "least that counts; train longer, or with a higher learning rate"
        )
    return spread
