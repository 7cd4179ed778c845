"""The inner loop: TRL's trainer with a loss that is scored where there are labels, and callbacks that say how it goes.

Knows nothing of recipes, stores or ledgers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import TrainerCallback
from trl import SFTTrainer

from llmops.train.cross_entropy import IGNORED as IGNORED
from llmops.train.cross_entropy import chunked_nll, labels_at_once, same_arithmetic

LOGIT_CHANGES = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
"""Settings of models that do something to their logits after the output layer."""

NOT_FIGURES = ("epoch", "step", "num_tokens")  # that transformers and TRL put into every line

TOKENS_AT_ONCE = 256  # of a pass on a CPU; one core, fp32: 65 GFLOP/s where 1,280 tokens make 71

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after every step with its number, the number of steps, and its figures: loss, grad_norm, learning_rate, tokens
and tokens a second, the held-out loss where it was looked at, and what the method adds to them."""


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


@dataclass(frozen=True)
class Question:
    """What a model is asked: the tokens it reads, and the N places where its next token is scored.

    `inputs` are a forward's arguments, token ids [B, T] among them; `rows` and `columns` [N] say where in [B, T] to
    look, `targets` [N] which token is scored there.
    """

    inputs: dict[str, Any]
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor


def question(batch: dict[str, Any]) -> Question:
    """The question that a batch with labels [B, T] asks, row by row; all else in the batch is for the model."""
    rows, columns = label_positions(batch["labels"]).nonzero(as_tuple=True)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return Question(inputs, rows, columns, batch["labels"][rows, columns + 1])


@dataclass
class Seen:
    """Hidden states that were on their way to the output layer [N, H], and the arithmetic they would have met there."""

    hidden: torch.Tensor | None = None
    arithmetic: AbstractContextManager[object] = field(default_factory=nullcontext)


@contextmanager
def scoring_only(
    output_layer: torch.nn.Module, asked: Question, n_let_in: int | None = None
) -> Iterator[Seen]:
    """Inside, the output layer sees the hidden states [B, T, H] at the asked places alone, as [1, N, H].

    The model runs its own forward (and whatever wraps it: autocast, DDP), so its logits come out as [1, N, V] with all
    it does to them (soft caps, scales). With `n_let_in`, only so many of the states go in; all are in what is yielded.
    """
    seen = Seen()

    def select(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        seen.hidden = inputs[0][asked.rows, asked.columns]
        seen.arithmetic = same_arithmetic(seen.hidden.device)
        return (seen.hidden[:n_let_in].unsqueeze(0), *inputs[1:])

    handle = output_layer.register_forward_pre_hook(select)
    try:
        yield seen
    finally:
        handle.remove()


def label_logits(
    model: Any, output_layer: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a batch's labels in fp32 [N, V], and the labels [N], row by row.

    Args:
        model: causal language model, possibly wrapped.
        output_layer: the layer inside `model` that makes logits from hidden states.
        batch: labels [B, T], and what the model reads: input_ids [B, T]; attention_mask or position_ids where needed.

    Raises:
        RuntimeError: the model does not send its hidden states through `output_layer`; scoring would be wrong.
    """
    asked = question(batch)
    return _logits(model, output_layer, asked), asked.targets


def _logits(model: Any, output_layer: torch.nn.Module, asked: Question) -> torch.Tensor:
    with scoring_only(output_layer, asked):
        logits = model(**asked.inputs, use_cache=False).logits
    if logits.shape[:2] != (1, asked.targets.numel()):
        raise RuntimeError(
            f"{type(model).__name__}: gave logits {tuple(logits.shape)} for {asked.targets.numel()} labels; "
            "its output layer does not see all hidden states, so it cannot be trained here"
        )
    return logits[0].float()


def token_nll(model: Any, output_layer: torch.nn.Module, asked: Question) -> torch.Tensor:
    """Negative log-likelihood of each target in nats [N] (fp32).

    Where there are many labels, their logits are made and scored chunk by chunk, unless
    the model changes what its output layer says, or that layer learns.

    Raises:
        RuntimeError: the model does not send its hidden states through `output_layer`; scoring would be wrong.
    """
    n_at_once = labels_at_once(output_layer)
    frozen = not any(parameter.requires_grad for parameter in output_layer.parameters())
    if asked.targets.numel() <= n_at_once or not frozen or _changes_logits(model):
        return F.cross_entropy(_logits(model, output_layer, asked), asked.targets, reduction="none")
    with scoring_only(output_layer, asked, n_let_in=1) as seen:
        first = model(**asked.inputs, use_cache=False).logits
    if seen.hidden is None:
        raise RuntimeError(f"{type(model).__name__}: its output layer was not run; it cannot be trained here")
    with seen.arithmetic:
        with torch.no_grad():
            plain = output_layer(seen.hidden[:1].unsqueeze(0))
        if first.shape != plain.shape or not torch.equal(first.float(), plain.float()):
            raise RuntimeError(
                f"{type(model).__name__}: its logits are not what its output layer says; it cannot be trained here"
            )
        return chunked_nll(seen.hidden, output_layer, asked.targets, n_at_once)


def _changes_logits(model: Any) -> bool:
    """Whether a model's configuration has it scale or cap its logits."""
    while hasattr(model, "module"):
        model = model.module
    config = model.config.get_text_config()
    return any(getattr(config, name, None) not in (None, 1.0) for name in LOGIT_CHANGES)


def label_nll(
    model: Any, output_layer: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood of a batch's labels in nats (scalar, fp32), and how many there are.

    Arguments and errors are those of `label_logits`.
    """
    asked = question(batch)
    return token_nll(model, output_layer, asked).sum(), asked.targets.numel()


def row_logprobs(
    model: Any, output_layer: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihood of each row's labels in nats [B] (fp32), and how many labels each row has [B].

    Arguments and errors are those of `label_logits`.
    """
    each = -token_nll(model, output_layer, question(batch))
    n_labels = label_positions(batch["labels"]).sum(dim=1)
    return sum_parts(each, n_labels), n_labels


def sum_parts(values: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Sums [P] of consecutive parts of `values` [N], whose sizes [P] add up to N."""
    # Not index_add, whose order of summing, and so the last digit, is not fixed on CUDA.
    return torch.stack([part.sum() for part in values.split(sizes.tolist())])


def unmasked(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch whose rows are padded on the right, without its attention mask.

    What a causal model says at a token does not depend on what follows, so padding there needs no mask; without one,
    attention takes its fastest kernels and builds no mask of T x T.
    """
    return {name: value for name, value in batch.items() if name != "attention_mask"}


def small_parts(batch: dict[str, torch.Tensor], n_tokens: int) -> list[dict[str, torch.Tensor]]:
    """A batch of rows padded on the right as batches of at most `n_tokens` computed tokens (or one row), longest last.

    Rows of like length come together and each part is cut to its longest row, so less is computed on padding, too.

    Args:
        batch: input_ids, attention_mask and labels, each [B, T].
        n_tokens: rows times longest row of a part, at most.
    """
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    parts = grouped(lengths, n_tokens)
    return [{name: part[rows, : lengths[rows[-1]]] for name, part in batch.items()} for rows in parts]


def grouped(lengths: Sequence[int], n_tokens: int) -> list[list[int]]:
    """Numbers of rows that come together in a part: of like length, and at most `n_tokens` with padding, or one row.

    >>> grouped([100, 300, 120, 90], 256)
    [[3, 0], [2], [1]]
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[row] <= n_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


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
        if num_items_in_batch is not None and self._takes_small_parts(inputs):
            *first, inputs = small_parts(inputs, TOKENS_AT_ONCE)
            done = torch.zeros(())
            for part in first:
                loss = label_nll(model, output_layer, unmasked(part))[0] / num_items_in_batch
                self.accelerator.backward(loss)
                done += loss.detach()
            return done + label_nll(model, output_layer, unmasked(inputs))[0] / num_items_in_batch
        total, n_labels = label_nll(model, output_layer, unmasked(inputs))
        mean = total / (n_labels if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            mean = mean * self.accelerator.num_processes  # DDP averages gradients over processes
        return mean

    def _takes_small_parts(self, inputs: dict[str, Any]) -> bool:
        """Whether a pass is better taken in parts, each with its own backward pass: the gradients add up to the same.

        A CPU multiplies 256 tokens nearly as fast as any more, and activations of more take memory; a GPU wants many.
        """
        alone = self.args.use_cpu and self.accelerator.num_processes == 1
        return alone and torch.is_grad_enabled() and set(inputs) == {"input_ids", "attention_mask", "labels"}

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
            figures = {name: float(value) for name, value in logs.items() if name not in NOT_FIGURES}
            self.on_step(state.global_step, state.max_steps, figures)
