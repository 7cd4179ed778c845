"""Direct preference optimization of a LoRA adapter: from encoded pairs to a PEFT folder and its figures.

The reference is the model that training starts from. It never changes, so each pair's log-likelihoods under it are
computed once, before the first step, and no second adapter is kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from datasets import Dataset
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from llmops.train.loop import IGNORED, OnStep, StepReporter, row_logprobs, sum_parts, token_nll
from llmops.train.model import adapter_config, load_base
from llmops.train.order import n_steps_of, training_order
from llmops.train.recipe import Dpo, Recipe
from llmops.train.rows import Pair
from llmops.train.session import (
    Session,
    Watch,
    precision,
    run_trainer,
    save_adapter,
    set_first_weights,
    shared_settings,
    tokenizer_with_padding,
)
from llmops.train.shared_prompt import pair_collator, pair_question, pair_token_figures

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")  # the columns TRL's collator passes on


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods of B pairs' answers in nats, and their numbers of tokens, each [2B]: chosen first."""

    logprobs: torch.Tensor
    n_tokens: torch.Tensor


def pair_losses(method: Dpo, policy: Scores, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and rewards margin of each pair, both [B] (without the part that `sft_weight` adds).

    The margin is beta * (log-ratio of chosen - log-ratio of rejected), where a log-ratio is against the reference.

    Args:
        method: the loss and its beta.
        policy: scores under the model that is trained.
        reference: log-likelihoods under the reference, [2B], chosen first.
    """
    ratios = policy.logprobs - reference
    chosen, rejected = ratios.chunk(2)
    margins = method.beta * (chosen - rejected)
    if method.loss == "sigmoid":
        return -F.logsigmoid(margins), margins
    mean_chosen, mean_rejected = (ratios / policy.n_tokens).chunk(2)
    return (mean_chosen - mean_rejected - 1 / (2 * method.beta)) ** 2, margins


def batch_loss(method: Dpo, policy: Scores, reference: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of one pass (scalar) with its rewards margin and accuracy; arguments as for `pair_losses`.

    Accuracy is the fraction of pairs whose margin is over 0; one of exactly 0, as before the first step, counts half.
    """
    losses, margins = pair_losses(method, policy, reference)
    loss = losses.mean()
    if method.sft_weight:
        loss = loss + method.sft_weight * chosen_nll(policy)
    margins = margins.detach()
    accuracy = ((margins > 0).float() + (margins >= 0).float()).mean() / 2
    return loss, {"margin": float(margins.mean()), "accuracy": float(accuracy)}


def chosen_nll(policy: Scores) -> torch.Tensor:
    """Mean negative log-likelihood of the chosen answers, nats a label (scalar)."""
    n_pairs = len(policy.n_tokens) // 2
    return -policy.logprobs[:n_pairs].sum() / policy.n_tokens[:n_pairs].sum()


class LabelScoredDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's DPO trainer whose output layer and loss run on the answers' positions alone, against a computed reference.

    TRL 1.16 scores every position on a CPU, and reads the reference again at every step. The loss is the same number.
    Rows come encoded, with the reference's log-likelihoods in the columns `REFERENCE`.
    """

    method: Dpo
    passes: list[dict[str, float]]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002 - pairs are averaged, not labels
    ) -> torch.Tensor:
        """Mean loss of the pass's pairs; same contract as TRL's.

        Raises:
            NotImplementedError: outputs are asked for; there are no logits of whole rows to give.
        """
        if return_outputs:
            raise NotImplementedError("label-scored loss keeps no logits; set prediction_loss_only")
        policy = score(model, self.accelerator.unwrap_model(model).get_output_embeddings(), inputs)
        reference = torch.cat([inputs[name] for name in REFERENCE])
        loss, figures = batch_loss(self.method, policy, reference)
        self.passes.append(figures)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add margin and accuracy, averaged over the step's passes, to the line that carries the loss."""
        if "loss" in logs and self.passes:
            means = {k: sum(p[k] for p in self.passes) / len(self.passes) for k in self.passes[0]}
            self.passes.clear()
            logs.update(means)
        super().log(logs, start_time)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """Leave rows as they are: they were encoded through the prompt contract."""
        return dataset

    def _send_telemetry(self) -> None:
        """Send nothing (TRL reports each run's kind of hardware and data to the hub otherwise)."""


def score(model: Any, output_layer: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Scores:
    """Scores of a batch of `SharedPromptCollator`, or as TRL's collators make it, padded on the right: input_ids,
    attention_mask and completion_mask, each [2B, T].
    """
    if "parts" in batch:
        logprobs = -token_nll(model, output_layer, pair_question(batch, model))
        return Scores(sum_parts(logprobs, batch["n_tokens"]), batch["n_tokens"])
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
    labelled = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "labels": labels,
    }
    return Scores(*row_logprobs(model, output_layer, labelled))


def train_adapter(recipe: Recipe, session: Session[Pair], on_step: OnStep) -> dict[str, float]:
    """Train, save the adapter into `session.adapter` and return the run's figures.

    Returns:
        Of the last ten steps: `train_loss`. Of the held-out pairs, absent without any: `held_out_loss`, `..._margin`,
        `..._accuracy` and `..._chosen_nll` (nats a label), and under the reference `held_out_loss_start` and
        `held_out_chosen_nll_start` (margin 0 and accuracy 0.5 by definition). `n_steps`, `n_epochs`, `n_tokens` (of
        both sides, without padding; a shared prompt counts once), `padding_frac`, `train_s` (with the reference's
        pass).

    Raises:
        TrainingFailed: the loss is not finite, at the step it happened.
        StoreError: the disk did not take the adapter.
        CouldNotRun: the base does not load.
        InvalidEvidence: the weights of the adapter that is continued do not fit its configuration.
    """
    pairs, held_out = session.examples.train, session.examples.held_out
    n_steps = n_steps_of(recipe, len(pairs))
    order = training_order([pair.n_tokens for pair in pairs], n_steps, recipe.step_batch, recipe.seed)
    started = time.monotonic()
    trainer = build_trainer(recipe, session, order, Watch(recipe, on_step))
    with disable_input_dtype_casting(trainer.model, active=recipe.precision == "bf16"):
        reference = score_pairs(trainer, recipe, held_out)
        reference_s = time.monotonic() - started
        trained = run_trainer(
            trainer, session, lambda: _held_out(trainer, recipe, held_out, reference)["held_out_loss"]
        )
        figures = _held_out(trainer, recipe, held_out, reference)
    order = order[: trained.n_steps * recipe.step_batch.n_rows]
    save_adapter(trainer.model, session.adapter)
    own = {
        "n_epochs": len(order) / len(pairs),
        **pair_token_figures(trainer, pairs, order),
        "train_s": trained.train_s + reference_s,
    }
    return trained.figures | own | figures


def build_trainer(
    recipe: Recipe, session: Session[Pair], order: Sequence[int], on_step: OnStep
) -> LabelScoredDPOTrainer:
    """The trainer over the training pairs in the given order, with the reference's log-likelihoods computed."""
    pairs = session.examples.train
    model, tokenizer = load_base(session.base, recipe, session.device), tokenizer_with_padding(session.base)
    trainer = LabelScoredDPOTrainer(
        model=model,
        args=trainer_settings(recipe, session, len(order)),
        train_dataset=to_dataset(pairs),
        processing_class=tokenizer,
        data_collator=pair_collator(model, tokenizer.pad_token_id),
        peft_config=adapter_config(recipe.lora, session.parent),
        callbacks=[StepReporter(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.method, trainer.passes = _method(recipe), []
    set_first_weights(trainer.model, session.parent)
    with disable_input_dtype_casting(trainer.model, active=recipe.precision == "bf16"):
        scores = score_pairs(trainer, recipe, pairs)
    trainer.train_dataset = to_dataset(pairs, scores).select(order)
    return trainer


def _method(recipe: Recipe) -> Dpo:
    if not isinstance(recipe.method, Dpo):
        raise TypeError(f"recipe {recipe.name}: its method is {recipe.method.kind}, not dpo")
    return recipe.method


def trainer_settings(recipe: Recipe, session: Session[Pair], n_pairs: int) -> DPOConfig:
    """TRL's settings for a recipe over `n_pairs` ordered pairs; TRL's own trainer would minimise the same loss."""
    method = _method(recipe)
    losses = {method.loss: 1.0} | ({"sft": method.sft_weight} if method.sft_weight else {})
    return DPOConfig(
        **shared_settings(recipe, session, n_pairs // recipe.step_batch.n_rows),
        beta=method.beta,
        loss_type=list(losses),
        loss_weights=list(losses.values()),
        disable_dropout=True,
    )


def to_dataset(pairs: Sequence[Pair], reference: Scores | None = None) -> Dataset:
    """Pairs as TRL's collator takes them, with the reference's log-likelihoods where they are known."""
    columns: dict[str, list[Any]] = {
        "prompt_ids": [list(pair.prompt_ids) for pair in pairs],
        "chosen_ids": [list(pair.chosen_ids) for pair in pairs],
        "rejected_ids": [list(pair.rejected_ids) for pair in pairs],
    }
    if reference is not None:
        halves = (half.tolist() for half in reference.logprobs.chunk(2))
        columns |= dict(zip(REFERENCE, halves, strict=True))
    return Dataset.from_dict(columns)


def score_pairs(trainer: Any, recipe: Recipe, pairs: Sequence[Pair]) -> Scores:
    """Scores of pairs, in their order, under the trainer's model as it is now, without dropout; on the CPU."""
    n_pairs = len(pairs)
    logprobs, n_tokens = torch.zeros(2 * n_pairs), torch.zeros(2 * n_pairs, dtype=torch.long)
    # bitsandbytes 0.50 lays 4-bit weights out anew when they are first read in eval mode on a CPU; from then on no
    # gradient passes through them, and training goes wrong in silence. Dropout is off in either mode.
    model = trainer.model.train(recipe.quantization == "nf4")
    device = next(model.parameters()).device
    by_length = sorted(range(n_pairs), key=lambda i: pairs[i].n_tokens)
    for start in range(0, n_pairs, recipe.batch.per_device):
        rows = by_length[start : start + recipe.batch.per_device]
        part = list(to_dataset([pairs[i] for i in rows]))
        batch = {name: tensor.to(device) for name, tensor in trainer.data_collator(part).items()}
        with torch.no_grad(), precision(recipe, device.type):
            found = score(model, model.get_output_embeddings(), batch)
        both = rows + [n_pairs + i for i in rows]
        logprobs[both], n_tokens[both] = found.logprobs.cpu(), found.n_tokens.cpu()
    return Scores(logprobs, n_tokens)


def _held_out(trainer: Any, recipe: Recipe, pairs: Sequence[Pair], reference: Scores) -> dict[str, float]:
    """What the held-out pairs say now and said under the reference; nothing without any."""
    if not pairs:
        return {}
    method = _method(recipe)
    now = score_pairs(trainer, recipe, pairs)
    before, _ = batch_loss(method, reference, reference.logprobs)
    after, figures = batch_loss(method, now, reference.logprobs)
    return {
        "held_out_loss": float(after),
        "held_out_loss_start": float(before),
        "held_out_margin": figures["margin"],
        "held_out_accuracy": figures["accuracy"],
        "held_out_chosen_nll": float(chosen_nll(now)),
        "held_out_chosen_nll_start": float(chosen_nll(reference)),
    }
