"""Odds ratio preference optimization of a LoRA adapter: chosen answers are learnt, and set off from rejected ones.

No reference is read. TRL 1.16 keeps its own trainer of it among the experimental ones, encodes texts itself, and learns
the prompts as well; here its DPO trainer is the base, and the loss is the paper's over the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback
from trl import DPOConfig

from llmops.train.loop import OnStep, StepReporter
from llmops.train.methods.dpo import LabelScoredDPOTrainer, Scores, chosen_nll, score, score_pairs, to_dataset
from llmops.train.model import adapter_config, load_base
from llmops.train.order import n_steps_of, training_order
from llmops.train.recipe import Orpo, Recipe
from llmops.train.rows import Pair
from llmops.train.session import (
    Session,
    Watch,
    run_trainer,
    save_adapter,
    set_first_weights,
    shared_settings,
    tokenizer_with_padding,
)
from llmops.train.shared_prompt import pair_collator, pair_token_figures


def log_odds_ratios(policy: Scores) -> torch.Tensor:
    """Log odds of B chosen answers over their rejected ones [B]; an answer's probability is its tokens' geometric mean.

    The odds of p are p / (1 - p): equation 4 of Hong 2024 (arXiv:2403.07691).
    """
    means = (policy.logprobs / policy.n_tokens).clamp(max=-1e-7)  # a probability of 1 has no odds
    chosen, rejected = (means - log1mexp(means)).chunk(2)
    return chosen - rejected


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) of x < 0, without cancellation (Maechler 2012, "Accurately computing log(1 - exp(-|a|))")."""
    near = x > -0.6931471805599453
    # Both branches are differentiated, so neither may see what only the other can bear.
    low, high = torch.where(near, -1.0, x), torch.where(near, x, -0.5)
    return torch.where(near, torch.log(-torch.expm1(high)), torch.log1p(-torch.exp(low)))


def batch_loss(method: Orpo, policy: Scores) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of one pass (scalar) with its margin, the mean log odds ratio, and its accuracy.

    Accuracy is the fraction of pairs whose odds ratio favours the chosen answer; one that favours neither counts half.

    Args:
        method: holds the weight of the odds ratio.
        policy: scores under the model that is trained, chosen answers first.
    """
    ratios = log_odds_ratios(policy)
    loss = chosen_nll(policy) - method.beta * F.logsigmoid(ratios).mean()
    seen = ratios.detach()
    accuracy = ((seen > 0).float() + (seen >= 0).float()).mean() / 2
    return loss, {"margin": float(seen.mean()), "accuracy": float(accuracy)}


class LabelScoredORPOTrainer(LabelScoredDPOTrainer):
    """TRL's preference trainer with ORPO's loss on the answers' positions alone. Rows come encoded."""

    odds: Orpo

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002 - pairs are averaged, not labels
    ) -> torch.Tensor:
        """Loss of the pass's pairs; same contract as TRL's.

        Raises:
            NotImplementedError: outputs are asked for; there are no logits of whole rows to give.
        """
        if return_outputs:
            raise NotImplementedError("label-scored loss keeps no logits; set prediction_loss_only")
        policy = score(model, self.accelerator.unwrap_model(model).get_output_embeddings(), inputs)
        loss, figures = batch_loss(self.odds, policy)
        self.passes.append(figures)
        return loss


def train_adapter(recipe: Recipe, session: Session[Pair], on_step: OnStep) -> dict[str, float]:
    """Train, save the adapter into `session.adapter` and return the run's figures.

    Returns:
        Of the last ten steps: `train_loss`. Of the held-out pairs, absent without any, after training and (`..._start`)
        before: `held_out_loss`, `..._margin`, `..._accuracy`, `..._chosen_nll` (nats a label). `n_steps`, `n_epochs`,
        `n_tokens` (of both sides, without padding; a shared prompt counts once), `padding_frac`, `train_s`.

    Raises:
        TrainingFailed: the loss is not finite, at the step it happened.
        StoreError: the disk did not take the adapter.
        CouldNotRun: the base does not load.
        InvalidEvidence: the weights of the adapter that is continued do not fit its configuration.
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
    save_adapter(trainer.model, session.adapter)
    return {
        **trained.figures,
        "n_epochs": len(order) / len(pairs),
        **pair_token_figures(trainer, pairs, order),
        **after,
        **{f"{name}_start": value for name, value in before.items()},
    }


def build_trainer(
    recipe: Recipe, session: Session[Pair], order: Sequence[int], on_step: OnStep
) -> LabelScoredORPOTrainer:
    """The trainer over the training pairs in the given order."""
    model, tokenizer = load_base(session.base, recipe, session.device), tokenizer_with_padding(session.base)
    trainer = LabelScoredORPOTrainer(
        model=model,
        args=trainer_settings(recipe, session, len(order)),
        train_dataset=to_dataset(session.examples.train).select(order),
        processing_class=tokenizer,
        data_collator=pair_collator(model, tokenizer.pad_token_id),
        peft_config=adapter_config(recipe.lora, session.parent),
        callbacks=[StepReporter(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.odds, trainer.passes = _method(recipe), []
    set_first_weights(trainer.model, session.parent)
    return trainer


def _method(recipe: Recipe) -> Orpo:
    if not isinstance(recipe.method, Orpo):
        raise TypeError(f"recipe {recipe.name}: its method is {recipe.method.kind}, not orpo")
    return recipe.method


def trainer_settings(recipe: Recipe, session: Session[Pair], n_pairs: int) -> DPOConfig:
    """TRL's settings for a recipe over `n_pairs` ordered pairs; those of its DPO loss are read by nothing here."""
    return DPOConfig(
        **shared_settings(recipe, session, n_pairs // recipe.step_batch.n_rows), disable_dropout=True
    )


def _held_out(trainer: Any, recipe: Recipe, pairs: Sequence[Pair]) -> dict[str, float]:
    """What the held-out pairs say under the trainer's model as it is now; nothing without any."""
    if not pairs:
        return {}
    policy = score_pairs(trainer, recipe, pairs)
    loss, figures = batch_loss(_method(recipe), policy)
    return {
        "held_out_loss": float(loss),
        "held_out_margin": figures["margin"],
        "held_out_accuracy": figures["accuracy"],
        "held_out_chosen_nll": float(chosen_nll(policy)),
    }
