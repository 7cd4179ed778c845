"""Probes: log-probabilities of fixed texts under base and adapter, in fp32, by which an engine proves what it applies.

The adapter is read back from its saved files: what is measured is what will be served, not what was in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmops.errors import TrainingFailed
from llmops.records import Probes

N_PROBES = 8
MAX_PROBE_TOKENS = 128
MIN_EFFECT_NATS = 0.01
"""Mean absolute change a token below which an adapter counts as doing nothing: rounding of a bfloat16 engine is about
0.05, two steps of a real run change 0.25, an untrained adapter changes exactly 0."""

MIN_CHANGE_NATS = 1e-4
"""Mean absolute change a token below which a continued adapter counts as its parent over again. Both are read from
their files in fp32 by one program: equal weights differ by exactly 0, rounding comes to about 1e-6, and the few small
steps of a preference round, which need not reach `MIN_EFFECT_NATS`, to 1e-2 and more."""

TokenRows = Sequence[Sequence[int]]


def choose_probes(conversations: Iterable[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Eight token sequences of 2 to 128 tokens for probing: conversations that fit whole first, in the given order.

    Longer ones are cut at their start's first 128 tokens, and only used when fewer than eight fit.

    Raises:
        TrainingFailed: there is no conversation of at least 2 tokens.
    """
    whole: list[tuple[int, ...]] = []
    cut: list[tuple[int, ...]] = []
    for row in conversations:
        fitting = whole if len(row) <= MAX_PROBE_TOKENS else cut
        if len(row) > 1 and len(fitting) < N_PROBES:
            fitting.append(tuple(row[:MAX_PROBE_TOKENS]))
        if len(whole) == N_PROBES:
            break
    chosen = tuple((whole + cut)[:N_PROBES])
    if not chosen:
        raise TrainingFailed(
            "probes: there is no conversation of two tokens or more to probe with; give more rows"
        )
    return chosen


def compute_probes(base_path: Path, adapter_dir: Path, token_ids: TokenRows, device: str = "cpu") -> Probes:
    """Teacher-forced log-probabilities of token sequences under a base model and under an adapter read from its folder.

    Args:
        base_path: the base model's folder.
        adapter_dir: a PEFT folder with adapter_config.json and adapter_model.safetensors.
        token_ids: sequences of at least 2 tokens each.
        device: where to compute; always in fp32.

    Returns:
        Natural logarithms of each token after a sequence's first.
    """
    model = load_adapted(base_path, adapter_dir, device)
    rows = tuple(tuple(int(token) for token in row) for row in token_ids)
    adapter_logprobs = tuple(token_logprobs(model, row, device) for row in rows)
    with model.disable_adapter():
        base_logprobs = tuple(token_logprobs(model, row, device) for row in rows)
    return Probes(rows, base_logprobs, adapter_logprobs)


def change_nats(probes: Probes, base_path: Path, parent_dir: Path, device: str = "cpu") -> float:
    """Mean absolute difference between an adapter and the one it continues a probed token, in nats.

    Args:
        probes: of the adapter.
        base_path: the base model's folder.
        parent_dir: the PEFT folder of the adapter it continues.
        device: where to compute; always in fp32.
    """
    model = load_adapted(base_path, parent_dir, device)
    parent_logprobs = tuple(token_logprobs(model, row, device) for row in probes.token_ids)
    return effect_nats(Probes(probes.token_ids, parent_logprobs, probes.adapter_logprobs))


def load_adapted(base_path: Path, adapter_dir: Path, device: str) -> Any:
    """The base model in fp32 with the adapter read from its folder, ready to answer."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32, local_files_only=True)
    return PeftModel.from_pretrained(base.to(device), str(adapter_dir)).eval()


def token_logprobs(model: Any, row: tuple[int, ...], device: str) -> tuple[float, ...]:
    """Natural logarithms of the probability of each token of `row` after its first, given those before it."""
    import torch

    ids = torch.tensor([row], device=device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    found = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return tuple(float(value) for value in found)


def effect_nats(probes: Probes) -> float:
    """Mean absolute difference between adapter and base a probed token, in nats; NaN if any value is not a number."""
    pairs = [
        abs(adapter - base)
        for adapters, bases in zip(probes.adapter_logprobs, probes.base_logprobs, strict=True)
        for adapter, base in zip(adapters, bases, strict=True)
    ]
    return sum(pairs) / len(pairs)


def require_effect(probes: Probes, where: str) -> float:
    """The adapter's effect in nats a token, refused when there is none.

    Raises:
        TrainingFailed: the effect is below `MIN_EFFECT_NATS` or not finite; `where` names the adapter.
    """
    effect = effect_nats(probes)
    if not math.isfinite(effect):
        raise TrainingFailed(
            f"{where}: its log-probabilities are not finite ({effect}); lower the learning rate"
        )
    if effect < MIN_EFFECT_NATS:
        raise TrainingFailed(
            f"{where}: has no effect: it changes {effect:.2g} nats a token on the probes, {MIN_EFFECT_NATS} is the "
            "least that counts; train longer, with a higher learning rate, or on rows the base does not answer already"
        )
    return effect


def require_change(change: float, where: str) -> float:
    """The effect over the adapter that was continued in nats a token, refused when there is none.

    Raises:
        TrainingFailed: the change is below `MIN_CHANGE_NATS`; `where` names both adapters.
    """
    if not change >= MIN_CHANGE_NATS:  # a change that is not a number is none either
        raise TrainingFailed(
            f"{where}: learnt nothing new: it changes {change:.2g} nats a token on the probes, {MIN_CHANGE_NATS} is "
            "the least that counts; train longer, or with a higher learning rate"
        )
    return change
