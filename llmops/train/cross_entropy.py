"""Cross entropy of many labels in little memory: the output layer runs on a few of them at a time.

Logits are the largest tensor of a step where vocabularies are large: 4,096 labels over 128,256 tokens are 2.1 GB in
fp32, three times over with their softmax and their gradient. Here one chunk of them lives at a time, and what is kept
for the backward pass has the size of the hidden states.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

IGNORED = -100  # label of a position that is not scored, as in torch's cross entropy
LOGITS_AT_ONCE = {"cpu": 2**24, "cuda": 2**27}
"""Logits of one chunk, by device: 64 MB in fp32 on a CPU, 512 MB on a GPU, whose matrix products want more rows."""


def labels_at_once(output_layer: torch.nn.Module) -> int:
    """How many labels are scored at a time on the device of `output_layer`, whose weight is [V, H]."""
    weight = output_layer.weight
    return max(1, LOGITS_AT_ONCE.get(weight.device.type, LOGITS_AT_ONCE["cpu"]) // int(weight.shape[0]))


def chunked_nll(
    hidden: torch.Tensor, output_layer: torch.nn.Module, targets: torch.Tensor, n_at_once: int
) -> torch.Tensor:
    """Negative log-likelihood of each target in nats [N] (fp32), as `cross_entropy(output_layer(hidden), targets)`.

    The gradient of each label's loss is computed beside it, so the backward pass runs no output layer again. It reaches
    `hidden` alone: the output layer must be frozen.

    Args:
        hidden: the states that the output layer reads, [N, H].
        output_layer: gives logits [n, V] of states [n, H].
        targets: token ids [N].
        n_at_once: states given to the output layer at a time.
    """
    found: torch.Tensor = _ChunkedNll.apply(hidden, output_layer, targets, n_at_once)
    return found


class _ChunkedNll(torch.autograd.Function):  # type: ignore[misc]
    """Keeps d nll / d hidden [N, H] in place of logits [N, V]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        output_layer: torch.nn.Module,
        targets: torch.Tensor,
        n_at_once: int,
    ) -> torch.Tensor:
        """Losses [N] of `targets` [N], in parts of `n_at_once`, with their gradient by `hidden` [N, H] kept."""
        nll = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), n_at_once):
            part = slice(start, start + n_at_once)
            states = hidden[part].detach().requires_grad_(gradient is not None)
            with torch.set_grad_enabled(gradient is not None):
                logits = output_layer(states)
            nll[part], slope = _nll(logits.detach(), targets[part])
            if gradient is not None:
                gradient[part] = torch.autograd.grad(logits, states, slope.to(logits.dtype))[0]
        ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        """The kept gradient, weighted by the losses' own [N]."""
        (gradient,) = ctx.saved_tensors
        return (slope.unsqueeze(1) * gradient).to(gradient.dtype), None, None, None


def _nll(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [n] and their gradient by the logits, softmax - one-hot [n, V], in fp32; `logits` may be overwritten."""
    scores, at = logits.float(), targets.unsqueeze(1)
    scale = scores.logsumexp(dim=-1, keepdim=True)
    nll = scale - scores.gather(1, at)
    slope = scores.sub_(scale).exp_()
    slope.scatter_add_(1, at, slope.new_full(at.shape, -1.0))
    return nll.squeeze(1), slope


def same_arithmetic(device: torch.device) -> AbstractContextManager[object]:
    """Called inside a model's forward: a context that computes as it does there (autocast or not), for use outside."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    found: AbstractContextManager[object] = torch.autocast(
        device.type, dtype=torch.get_autocast_dtype(device.type)
    )
    return found
