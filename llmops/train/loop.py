"""The inner loop: TRL's trainer with a loss that is scored where there are labels, and callbacks that say how it goes.

Knows nothing of recipes, stores or ledgers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import TrainerCallback
from trl import SFTTrainer

IGNORED = -100  # label of a position that is not scored, as in torch's cross entropy

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after every step with its number, the number of steps, and its figures: loss, grad_norm, learning_rate, and
what the method adds to them (`STEP_FIGURES`)."""

STEP_FIGURES = ("loss", "grad_norm", "learning_rate", "margin", "accuracy", "kl")


def label_positions(labels: torch.Tensor) -> torch.Tensor:
    """Where the output layer has to predict: True at [b, t] if the token at t + 1 has a label.

    Args:
        labels: [B, T] token ids, `IGNORED` where nothing is scored.

    Returns:
        [B, T] bool; the last column is False.
    """
    positions = torch.zeros_like(labels, dtype=torch.bool)
    positions[:, :-1] = labels[:, 1:] != IGNORED
    return positions


@contextmanager
def scoring_only(output_layer: torch.nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """Inside, the output layer sees the hidden states [B, T, H] at `positions` alone, as [1, N, H].

    N is the number of True in `positions` [B, T], in row-major order. The model runs its own forward (and whatever
    wraps it: autocast, DDP), so its logits come out as [1, N, V] with all it does to them (soft caps, scales).
    """

    def select(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][positions].unsqueeze(0), *inputs[1:])

    handle = output_layer.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def label_logits(
    model: Any, output_layer: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a batch's labels in fp32 [N, V], and the labels [N], row by row.

    Args:
        model: causal language model, possibly wrapped.
        output_layer: the layer inside `model` that makes logits from hidden states.
        batch: input_ids, attention_mask and labels, each [B, T].

    Raises:
        RuntimeError: the model does not send its hidden states through `output_layer`; scoring would be wrong.
    """
    labels = batch["labels"]
    positions = label_positions(labels)
    targets = labels[:, 1:][positions[:, :-1]]
    with scoring_only(output_layer, positions):
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
    if logits.shape[:2] != (1, targets.numel()):
        raise RuntimeError(
            f"{type(model).__name__}: gave logits {tuple(logits.shape)} for {targets.numel()} labels; "
            "its output layer does not see all hidden states, so it cannot be trained here"
        )
    return logits[0].float(), targets


def label_nll(
    model: Any, output_layer: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood of a batch's labels in nats (scalar, fp32), and how many there are.

    Arguments and errors are those of `label_logits`.
    """
    logits, targets = label_logits(model, output_layer, batch)
    return F.cross_entropy(logits, targets, reduction="sum"), targets.numel()


def row_logprobs(
    model: Any, output_layer: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihood of each row's labels in nats [B] (fp32), and how many labels each row has [B].

    Arguments and errors are those of `label_logits`.
    """
    logits, targets = label_logits(model, output_layer, batch)
    each = -F.cross_entropy(logits, targets, reduction="none")
    n_labels = label_positions(batch["labels"]).sum(dim=1)
    # Not index_add, whose order of summing, and so the last digit, is not fixed on CUDA.
    return torch.stack([row.sum() for row in each.split(n_labels.tolist())]), n_labels


class LabelScoredSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's SFT trainer whose output layer and loss run on label positions alone.

    TRL 1.16 does so on Triton devices only; on a CPU it scores every position, more than half of a step's time where
    answers are short. The loss is the same number: summed over labels, divided by the labels of the whole step.
    """

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mean negative log-likelihood a label of the step, in nats; same contract as TRL's.

        Raises:
            NotImplementedError: outputs are asked for; there are no logits of whole rows to give.
        """
        if return_outputs:
            raise NotImplementedError("label-scored loss keeps no logits; set prediction_loss_only")
        output_layer = self.accelerator.unwrap_model(model).get_output_embeddings()
        total, n_labels = label_nll(model, output_layer, inputs)
        mean = total / (n_labels if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            mean = mean * self.accelerator.num_processes  # DDP averages gradients over processes
        return mean

    def _send_telemetry(self) -> None:
        """Send nothing (TRL reports each run's kind of hardware and data to the hub otherwise)."""


class StepReporter(TrainerCallback):  # type: ignore[misc]
    """Hands every step's figures to one function."""

    def __init__(self, on_step: OnStep) -> None:
        """Call `on_step` after each optimizer step."""
        self.on_step = on_step

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Called by the trainer; takes the lines that carry a step's loss."""
        if "loss" in logs:
            figures = {name: float(logs[name]) for name in STEP_FIGURES if logs.get(name) is not None}
            self.on_step(state.global_step, state.max_steps, figures)
