"""Teacher-forced log-probabilities by transformers and PEFT in fp32: what an engine's are held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmops.records import Probes

TokenIds = Sequence[Sequence[int]]
Rows = tuple[tuple[float, ...], ...]


def teacher_forced(base: Path, adapter: Path | None, token_ids: TokenIds) -> Rows:
    """Natural log-probability of each token after the first, one text a forward pass."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return score(model.eval(), token_ids)


def score(model: Any, token_ids: TokenIds) -> Rows:
    """The same for a model at hand."""
    import torch

    rows = []
    with torch.no_grad():
        for ids in token_ids:
            given = torch.tensor([list(ids)])
            logprobs = torch.log_softmax(model(given).logits[0].float(), -1)
            rows.append(tuple(logprobs[:-1].gather(-1, given[0, 1:, None])[:, 0].tolist()))
    return tuple(rows)


def probes_of(base: Path, adapter: Path, token_ids: TokenIds) -> Probes:
    """Probes as training would store them."""
    ids = tuple(tuple(row) for row in token_ids)
    return Probes(ids, teacher_forced(base, None, ids), teacher_forced(base, adapter, ids))
