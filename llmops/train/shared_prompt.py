"""Pairs read with their prompt once: prompt, chosen and rejected answer in one row, neither answer seeing the other.

A preference's two sides share their prompt, which is most of both. Read as two rows it is computed twice; here its
states serve both answers. Positions of the rejected answer go on from the prompt, as if the chosen one were not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from llmops.train.documents import can_attend_in_documents
from llmops.train.loop import Question
from llmops.train.rows import Pair
from llmops.train.session import token_figures

PROMPT, CHOSEN, REJECTED, PADDING = range(4)  # parts of a row


@dataclass(frozen=True)
class SharedPromptCollator:
    """Pairs (`prompt_ids`, `chosen_ids`, `rejected_ids`, and columns of numbers) as one batch of B rows of T tokens.

    Returns input_ids, position_ids and parts, each [B, T]; where the answers' tokens are predicted (rows, columns) and
    what they are (targets), each [N], all chosen answers first; their lengths n_tokens [2B]; and the numbers, each [B].
    """

    pad_token_id: int

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Put pairs together, padded on the right."""
        ids, positions, parts = [], [], []
        for pair in pairs:
            prompt, chosen, rejected = (pair[f"{name}_ids"] for name in ("prompt", "chosen", "rejected"))
            n, c, r = len(prompt), len(chosen), len(rejected)
            ids.append(torch.tensor([*prompt, *chosen, *rejected]))
            positions.append(torch.tensor([*range(n + c), *range(n, n + r)]))
            parts.append(torch.tensor([PROMPT] * n + [CHOSEN] * c + [REJECTED] * r))
        places = [
            *((i, self._before_chosen(pair), pair["chosen_ids"]) for i, pair in enumerate(pairs)),
            *((i, self._before_rejected(pair), pair["rejected_ids"]) for i, pair in enumerate(pairs)),
        ]
        numbers = {
            name: torch.tensor([pair[name] for pair in pairs]) for name in pairs[0] if name[-4:] != "_ids"
        }
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "position_ids": pad_sequence(positions, batch_first=True),
            "parts": pad_sequence(parts, batch_first=True, padding_value=PADDING),
            "rows": torch.tensor([i for i, columns, _ in places for _ in columns]),
            "columns": torch.tensor([column for _, columns, _ in places for column in columns]),
            "targets": torch.tensor([token for _, _, answer in places for token in answer]),
            "n_tokens": torch.tensor([len(answer) for _, _, answer in places]),
        } | numbers

    @staticmethod
    def _before_chosen(pair: dict[str, Any]) -> list[int]:
        """The places whose next token is one of the chosen answer's: the prompt's last, then its own but the last."""
        n = len(pair["prompt_ids"])
        return list(range(n - 1, n - 1 + len(pair["chosen_ids"])))

    @staticmethod
    def _before_rejected(pair: dict[str, Any]) -> list[int]:
        n, c = len(pair["prompt_ids"]), len(pair["chosen_ids"])
        return [n - 1, *range(n + c, n + c + len(pair["rejected_ids"]) - 1)]


def pair_collator(model: Any, pad_token_id: int) -> SharedPromptCollator | None:
    """The collator of pairs for a model; None (TRL's own, two rows a pair) where its layers do not attend plainly."""
    return SharedPromptCollator(pad_token_id) if can_attend_in_documents(model.config) else None


def pair_token_figures(trainer: Any, pairs: Sequence[Pair], order: Sequence[int]) -> dict[str, float]:
    """`n_tokens` and `padding_frac` of pairs as a trainer's collator has them read."""
    per_pass = trainer.args.per_device_train_batch_size
    if isinstance(trainer.data_collator, SharedPromptCollator):
        return token_figures([sum(pair.lengths) - len(pair.prompt_ids) for pair in pairs], order, per_pass)
    sides = [length for pair in pairs for length in pair.lengths]
    return token_figures(sides, [side for i in order for side in (2 * i, 2 * i + 1)], 2 * per_pass)


def pair_question(batch: dict[str, torch.Tensor], model: Any) -> Question:
    """What a batch of `SharedPromptCollator` asks a model: every token of both answers, all chosen answers first."""
    while hasattr(model, "module"):
        model = model.module
    seen = visible(batch["parts"])
    if (
        model.config.get_text_config()._attn_implementation == "eager"
    ):  # adds its mask; the others take truth values
        seen = torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(
            ~seen, torch.finfo(model.dtype).min
        )
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "attention_mask": seen}
    return Question(inputs, batch["rows"], batch["columns"], batch["targets"])


def visible(parts: torch.Tensor) -> torch.Tensor:
    """Which token sees which, [B, 1, T, T]: those before it in the prompt and in its own part of the row [B, T].

    >>> visible(torch.tensor([[PROMPT, CHOSEN, CHOSEN, REJECTED]])).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    """
    reader, read = parts[:, :, None], parts[:, None, :]
    before = torch.ones(parts.shape[1], parts.shape[1], dtype=torch.bool, device=parts.device).tril()
    return (before & ((read == PROMPT) | (read == reader))).unsqueeze(1)
