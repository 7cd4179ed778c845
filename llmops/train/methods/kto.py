"""Kahneman-Tversky optimization of a LoRA adapter: from answers judged one by one to a PEFT folder and its figures.

The reference is the model that training starts from. It never changes, so its log-likelihoods are computed once, before
the first step: of every answer after its own prompt, and after the one it is paired with to measure the common point.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback
from trl import KTOConfig, KTOTrainer

from llmops.train.loop import OnStep, StepReporter
from llmops.train.methods.dpo import score
from llmops.train.model import adapter_config, load_base
from llmops.train.order import n_steps_of, training_order
from llmops.train.recipe import Kto, Recipe
from llmops.train.rows import Judged
from llmops.train.session import (
    Session,
    Watch,
    precision,
    run_trainer,
    save_adapter,
    set_first_weights,
    shared_settings,
    token_figures,
    tokenizer_with_padding,
)

Answer = tuple[tuple[int, ...], tuple[int, ...]]  # token ids of a prompt and of an answer


@dataclass(frozen=True)
class Ratios:
    """Log-ratios of answers to the reference in nats, after their own prompts and others', and who is good; all [B]."""

    own: torch.Tensor
    other: torch.Tensor
    good: torch.Tensor


def batch_loss(method: Kto, ratios: Ratios) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of one pass (scalar), and its common point (`kl`), margin and accuracy.

    Equation 7 of Ethayarajh 2024 (arXiv:2402.01306). The margin is beta times the mean log-ratio of good answers less
    that of bad ones, absent where a pass has one kind alone; accuracy is the fraction of answers on their side of the
    common point (one that stands on it counts half).

    Args:
        method: beta and weights.
        ratios: log-ratios of the pass; those after other prompts carry no gradient.
    """
    kl = ratios.other.mean().detach().clamp(min=0)
    sign = ratios.good.float() * 2 - 1
    sides = sign * (ratios.own - kl)
    weights = torch.where(ratios.good, method.good_weight, method.bad_weight)
    loss = (weights * (1 - torch.sigmoid(method.beta * sides))).mean()
    seen, own = sides.detach(), ratios.own.detach()
    accuracy = ((seen > 0).float() + (seen >= 0).float()).mean() / 2
    figures = {"kl": float(kl), "accuracy": float(accuracy)}
    if bool(ratios.good.any()) and not bool(ratios.good.all()):
        figures["margin"] = method.beta * float(own[ratios.good].mean() - own[~ratios.good].mean())
    return loss, figures


class LabelScoredKTOTrainer(KTOTrainer):  # type: ignore[misc]
    """TRL's KTO trainer whose output layer and loss run on the answers' positions alone, against a computed reference.

    TRL 1.16 scores every position on a CPU, and reads the reference again at every step. The loss is the same number.
    Rows come encoded, with the answer each prompt is paired with and both log-likelihoods under the reference.
    """

    method: Kto
    passes: list[dict[str, float]]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002 - answers are averaged, not labels
    ) -> torch.Tensor:
        """Mean loss of the pass's answers; same contract as TRL's.

        Raises:
            NotImplementedError: outputs are asked for; there are no logits of whole rows to give.
        """
        if return_outputs:
            raise NotImplementedError("label-scored loss keeps no logits; set prediction_loss_only")
        output_layer = self.accelerator.unwrap_model(model).get_output_embeddings()
        with torch.no_grad():
            others = {name.removeprefix("KL_"): t for name, t in inputs.items() if name.startswith("KL_")}
            other = score(model, output_layer, others).logprobs
        own = score(model, output_layer, inputs).logprobs
        ratios = Ratios(own - inputs["ref_logps"], other - inputs["ref_KL_logps"], inputs["label"])
        loss, figures = batch_loss(self.method, ratios)
        self.passes.append(figures)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the passes' figures, averaged over the step, to the line that carries the loss."""
        if "loss" in logs and self.passes:
            for name in sorted({name for one in self.passes for name in one}):
                found = [one[name] for one in self.passes if name in one]
                logs[name] = sum(found) / len(found)
            self.passes.clear()
        super().log(logs, start_time)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """Leave rows as they are: they were encoded through the prompt contract."""
        return dataset

    def _send_telemetry(self) -> None:
        """Send nothing (TRL reports each run's kind of hardware and data to the hub otherwise)."""


def train_adapter(recipe: Recipe, session: Session[Judged], on_step: OnStep) -> dict[str, float]:
    """Train, save the adapter into `session.adapter` and return the run's figures.

    Returns:
        Of the last ten steps: `train_loss`. Of the held-out answers, absent without any: `held_out_loss`, `..._kl`,
        `..._accuracy`, `..._margin` (absent where they are of one kind) and `held_out_loss_start`. `n_good` and `n_bad`
        of the answers trained on, `n_steps`, `n_epochs`, `n_tokens` (padding and pairings not counted), `padding_frac`,
        `train_s` (with the reference's pass).

    Raises:
        TrainingFailed: the loss is not finite, at the step it happened.
        StoreError: the disk did not take the adapter.
        CouldNotRun: the base does not load.
        InvalidEvidence: the weights of the adapter that is continued do not fit its configuration.
    """
    rows, held_out = session.examples.train, session.examples.held_out
    lengths = [row.n_tokens for row in rows]
    n_steps = n_steps_of(recipe, len(rows))
    order = training_order(lengths, n_steps, recipe.step_batch, recipe.seed)
    started = time.monotonic()
    trainer = build_trainer(recipe, session, order, Watch(recipe, on_step))
    with disable_input_dtype_casting(trainer.model, active=recipe.precision == "bf16"):
        reference = _score_paired(trainer, recipe, held_out, paired_answers(held_out, len(held_out)))
        reference_s = time.monotonic() - started
        trained = run_trainer(
            trainer, session, lambda: _held_out(trainer, recipe, held_out, reference)["held_out_loss"]
        )
        figures = _held_out(trainer, recipe, held_out, reference)
    save_adapter(trainer.model, session.adapter)
    n_good = sum(row.good for row in rows)
    order = order[: trained.n_steps * recipe.step_batch.n_rows]
    own = {
        "n_good": float(n_good),
        "n_bad": float(len(rows) - n_good),
        "n_epochs": len(order) / len(rows),
        **token_figures(lengths, order, recipe.batch.per_device),
        "train_s": trained.train_s + reference_s,
    }
    return trained.figures | own | figures


def build_trainer(
    recipe: Recipe, session: Session[Judged], order: Sequence[int], on_step: OnStep
) -> LabelScoredKTOTrainer:
    """The trainer over the judged answers in the given order, with the reference's log-likelihoods computed."""
    rows = [session.examples.train[i] for i in order]
    others = paired_answers(rows, recipe.batch.per_device)
    trainer = LabelScoredKTOTrainer(
        model=load_base(session.base, recipe, session.device),
        args=trainer_settings(recipe, session, len(order)),
        train_dataset=to_dataset(rows, others),
        processing_class=tokenizer_with_padding(session.base),
        peft_config=adapter_config(recipe.lora, session.parent),
        callbacks=[StepReporter(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.method, trainer.passes = _method(recipe), []
    set_first_weights(trainer.model, session.parent)
    with disable_input_dtype_casting(trainer.model, active=recipe.precision == "bf16"):
        reference = _score_paired(trainer, recipe, rows, others)
    trainer.train_dataset = to_dataset(rows, others, reference)
    return trainer


def _method(recipe: Recipe) -> Kto:
    if not isinstance(recipe.method, Kto):
        raise TypeError(f"recipe {recipe.name}: its method is {recipe.method.kind}, not kto")
    return recipe.method


def trainer_settings(recipe: Recipe, session: Session[Judged], n_rows: int) -> KTOConfig:
    """TRL's settings for a recipe over `n_rows` ordered answers; TRL's own trainer would minimise the same loss."""
    method = _method(recipe)
    return KTOConfig(
        **shared_settings(recipe, session, n_rows // recipe.step_batch.n_rows),
        loss_type="kto",
        beta=method.beta,
        desirable_weight=method.good_weight,
        undesirable_weight=method.bad_weight,
        disable_dropout=True,
    )


def paired_answers(rows: Sequence[Judged], per_pass: int) -> list[tuple[int, ...]]:
    """The answer that each prompt is paired with to measure the common point: that of the row before it in its pass.

    The first row of a pass gets the last one's, as in the paper's own code and in TRL's: the answers of a pass are the
    same ones as its rewards are made of.
    """
    passes = [rows[start : start + per_pass] for start in range(0, len(rows), max(per_pass, 1))]
    return [part[i - 1].answer_ids for part in passes for i in range(len(part))]


def to_dataset(
    rows: Sequence[Judged],
    others: Sequence[tuple[int, ...]],
    reference: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Dataset:
    """Ordered answers as TRL's collator takes them, with the reference's log-likelihoods where they are known."""
    columns: dict[str, list[Any]] = {
        "prompt_ids": [list(row.prompt_ids) for row in rows],
        "completion_ids": [list(row.answer_ids) for row in rows],
        "KL_completion_ids": [list(answer) for answer in others],
        "label": [row.good for row in rows],
    }
    if reference is not None:
        columns |= {"ref_logps": list(reference[0]), "ref_KL_logps": list(reference[1])}
    return Dataset.from_dict(columns)


def _score_paired(
    trainer: Any, recipe: Recipe, rows: Sequence[Judged], others: Sequence[tuple[int, ...]]
) -> tuple[list[float], list[float]]:
    """Log-likelihoods of answers after their own prompts, and of `others` after the same prompts."""
    own = [(row.prompt_ids, row.answer_ids) for row in rows]
    paired = [(row.prompt_ids, answer) for row, answer in zip(rows, others, strict=True)]
    found = score_answers(trainer, recipe, sorted({*own, *paired}))
    return [found[one] for one in own], [found[one] for one in paired]


def score_answers(trainer: Any, recipe: Recipe, answers: Sequence[Answer]) -> dict[Answer, float]:
    """Log-likelihood in nats of each answer after its prompt, under the trainer's model as it is, without dropout."""
    # In eval mode on a CPU, bitsandbytes 0.50 breaks the gradients of 4-bit weights; see `methods.dpo.score_pairs`.
    model = trainer.model.train(recipe.quantization == "nf4")
    device = next(model.parameters()).device
    by_length = sorted(answers, key=lambda one: len(one[0]) + len(one[1]))
    found: dict[Answer, float] = {}
    for start in range(0, len(by_length), recipe.batch.per_device):
        part = by_length[start : start + recipe.batch.per_device]
        rows = [{"prompt_ids": list(p), "completion_ids": list(a), "label": True} for p, a in part]
        batch = {name: tensor.to(device) for name, tensor in trainer.data_collator(rows).items()}
        with torch.no_grad(), precision(recipe, device.type):
            logprobs = score(model, model.get_output_embeddings(), batch).logprobs
        found |= dict(zip(part, logprobs.tolist(), strict=True))
    return found


def _held_out(
    trainer: Any, recipe: Recipe, rows: Sequence[Judged], reference: tuple[list[float], list[float]]
) -> dict[str, float]:
    """What the held-out answers say now and said under the reference, with one common point for all of them."""
    if not rows:
        return {}
    own, other = _score_paired(trainer, recipe, rows, paired_answers(rows, len(rows)))
    good = torch.tensor([row.good for row in rows])
    now = Ratios(
        torch.tensor(own) - torch.tensor(reference[0]), torch.tensor(other) - torch.tensor(reference[1]), good
    )
    start = Ratios(torch.zeros(len(rows)), torch.zeros(len(rows)), good)
    after, figures = batch_loss(_method(recipe), now)
    before, _ = batch_loss(_method(recipe), start)
    return {
        "held_out_loss": float(after),
        "held_out_loss_start": float(before),
        **{f"held_out_{name}": value for name, value in figures.items()},
    }
