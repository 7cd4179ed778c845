"""Reward modelling with a LoRA adapter and a head of one number: from encoded pairs to a PEFT folder and its figures.

The trainer and the loss are TRL's own; rows come encoded, the head is made after the seed, and padding is a token that
ends no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from datasets import Dataset
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback, set_seed
from trl import RewardConfig, RewardTrainer

from llmops.train.loop import OnStep, StepReporter
from llmops.train.model import load_base, load_tokenizer, planned_config
from llmops.train.order import n_steps_of, training_order
from llmops.train.recipe import Recipe, Reward
from llmops.train.rewards import reward_pad_id
from llmops.train.rows import Pair
from llmops.train.session import (
    Session,
    Watch,
    precision,
    run_trainer,
    save_adapter,
    set_first_weights,
    shared_settings,
    token_figures,
)


class PlainRewardTrainer(RewardTrainer):  # type: ignore[misc]
    """TRL's reward trainer, which is silent."""

    def _send_telemetry(self) -> None:
        """Send nothing (TRL reports each run's kind of hardware and data to the hub otherwise)."""


def train_adapter(recipe: Recipe, session: Session[Pair], on_step: OnStep) -> dict[str, float]:
    """Train, save the adapter with its head into `session.adapter` and return the run's figures.

    Returns:
        Of the last ten steps: `train_loss`. Of the held-out pairs, absent without any, after training and (`..._start`)
        before: `held_out_accuracy` (fraction whose chosen answer has the higher reward; equal ones count half),
        `held_out_margin` and `held_out_loss` (without the part that centres). `n_steps`, `n_epochs`, `n_tokens` (of
        both sides, padding not counted), `padding_frac`, `train_s`.

    Raises:
        TrainingFailed: the loss is not finite, at the step it happened.
        StoreError: the disk did not take the adapter.
        CouldNotRun: the base does not load.
    """
    pairs, held_out = session.examples.train, session.examples.held_out
    n_steps = n_steps_of(recipe, len(pairs))
    order = training_order([pair.n_tokens for pair in pairs], n_steps, recipe.step_batch, recipe.seed)
    trainer = build_trainer(recipe, session, order, Watch(recipe, on_step))
    with disable_input_dtype_casting(trainer.model, active=recipe.precision == "bf16"):
        before = _held_out(trainer, recipe, held_out)
        trained = run_trainer(trainer, session, lambda: _held_out(trainer, recipe, held_out)["held_out_loss"])
        after = _held_out(trainer, recipe, held_out)
    order = order[: trained.n_steps * recipe.step_batch.n_rows]
    sides = [length for pair in pairs for length in pair.lengths]
    read = [side for i in order for side in (2 * i, 2 * i + 1)]
    save_adapter(trainer.model, session.adapter)
    return {
        **trained.figures,
        "n_epochs": len(order) / len(pairs),
        **token_figures(sides, read, 2 * recipe.batch.per_device),
        **after,
        **{f"{name}_start": value for name, value in before.items()},
    }


def build_trainer(
    recipe: Recipe, session: Session[Pair], order: Sequence[int], on_step: OnStep
) -> PlainRewardTrainer:
    """The trainer over the training pairs in the given order."""
    tokenizer = load_tokenizer(session.base)
    tokenizer.pad_token_id = reward_pad_id(session.base.contract)
    set_seed(recipe.seed)  # the head is made with the base, before TRL sets the seed
    trainer = PlainRewardTrainer(
        model=load_base(session.base, recipe, session.device),
        args=trainer_settings(recipe, session, len(order)),
        train_dataset=to_dataset(session.examples.train).select(order),
        processing_class=tokenizer,
        peft_config=planned_config(recipe, None),
        callbacks=[StepReporter(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    set_first_weights(trainer.model, None)
    return trainer


def trainer_settings(recipe: Recipe, session: Session[Pair], n_pairs: int) -> RewardConfig:
    """TRL's settings for a recipe over `n_pairs` ordered pairs."""
    if not isinstance(recipe.method, Reward):
        raise TypeError(f"recipe {recipe.name}: its method is {recipe.method.kind}, not reward")
    return RewardConfig(
        **shared_settings(recipe, session, n_pairs // recipe.step_batch.n_rows),
        center_rewards_coefficient=recipe.method.center_weight or None,
        disable_dropout=True,
    )


def to_dataset(pairs: Sequence[Pair]) -> Dataset:
    """Pairs as TRL's collator takes them: whole rows of token ids, each up to its answer's end token."""
    return Dataset.from_dict(
        {
            "chosen_ids": [list(pair.prompt_ids + pair.chosen_ids) for pair in pairs],
            "rejected_ids": [list(pair.prompt_ids + pair.rejected_ids) for pair in pairs],
        }
    )


def pair_rewards(trainer: Any, recipe: Recipe, pairs: Sequence[Pair]) -> torch.Tensor:
    """Rewards [2, P] of P pairs' chosen and rejected answers under the trainer's model as it is now; on the CPU."""
    # In eval mode on a CPU, bitsandbytes 0.50 breaks the gradients of 4-bit weights; see `methods.dpo.score_pairs`.
    model = trainer.model.train(recipe.quantization == "nf4")
    device = next(model.parameters()).device
    found = torch.zeros(2, len(pairs))
    by_length = sorted(range(len(pairs)), key=lambda i: pairs[i].n_tokens)
    for start in range(0, len(pairs), recipe.batch.per_device):
        rows = by_length[start : start + recipe.batch.per_device]
        part = list(to_dataset([pairs[i] for i in rows]))
        batch = {name: tensor.to(device) for name, tensor in trainer.data_collator(part).items()}
        with torch.no_grad(), precision(recipe, device.type):
            rewards = model(**batch, use_cache=False).logits.float().squeeze(-1)
        found[:, rows] = rewards.cpu().reshape(2, len(rows))
    return found


def _held_out(trainer: Any, recipe: Recipe, pairs: Sequence[Pair]) -> dict[str, float]:
    """What the held-out pairs say under the trainer's model as it is now; nothing without any."""
    if not pairs:
        return {}
    chosen, rejected = pair_rewards(trainer, recipe, pairs)
    margins = chosen - rejected
    return {
        "held_out_accuracy": float(((margins > 0).float() + (margins >= 0).float()).mean() / 2),
        "held_out_margin": float(margins.mean()),
        "held_out_loss": float(-F.logsigmoid(margins).mean()),
    }
