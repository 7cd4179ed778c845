"""Group relative policy optimization of a LoRA adapter: from encoded prompts and rewards to a PEFT folder and figures.

Advantages and loss are TRL's own. Prompts come encoded, log-probabilities are taken at the answers' positions alone,
and a step's answers are sampled from the weights that the step updates. What is drawn for an answer follows from the
recipe's seed, the prompt's place in the run and the number of the answer: any number of processes samples the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from llmops.train.loop import IGNORED, OnStep, StepReporter, label_logits, label_positions
from llmops.train.model import adapter_config, load_base
from llmops.train.order import n_steps_of, training_order
from llmops.train.prompts import Asked
from llmops.train.recipe import Batch, Grpo, Recipe
from llmops.train.sampling import Draw, Limits, answer_ids, answer_seed
from llmops.train.scorers import Answer, Scorer
from llmops.train.session import (
    N_LAST,
    Session,
    Watch,
    precision,
    run_trainer,
    save_adapter,
    set_first_weights,
    shared_settings,
    tokenizer_with_padding,
    without_dropout,
)

STEP_MEANS = {
    "reward": "reward",
    "reward_std": "reward_std",
    "answer_tokens": "completions/mean_length",
    "cut_frac": "completions/clipped_ratio",
    "kl": "kl",
}
"""Means over a step's answers by our names, and by TRL's: weighted rewards and their deviation, lengths, the part that
was cut, and where there is a reference the divergence from it in nats a token."""
REFERENCE = "ref"  # what TRL calls the second adapter that is the reference, where training continues one


class AskingGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPO trainer over encoded prompts, whose output layer runs on the answers' positions alone.

    A row of its dataset is a place in `asked`, the prompts of the whole run in their order. TRL 1.16 scores every
    position on a CPU; the numbers are the same.
    """

    asked: Sequence[Asked]
    limits: Limits
    seeds: Sequence[int] = ()  # of the answers that are about to be sampled

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """The token ids that the prompt contract gave; notes what each answer is drawn by."""
        before = self.accelerator.process_index * len(prompts)  # rows of the step that other processes answer
        self.seeds = [
            answer_seed(self.args.seed, int(place), (before + i) % self.num_generations)
            for i, place in enumerate(prompts)
        ]
        return [list(self.asked[int(place)].prompt_ids) for place in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any) -> tuple[list[list[int]], None]:
        """Sample an answer to each prompt, in the recipe's arithmetic."""
        draw = Draw(self.seeds, self.args.temperature, self.args.top_p)
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():
            return answer_ids(model, prompt_ids, self.limits, draw), None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Log-probabilities of the answers' tokens and entropies before them, both [B, K], 0 where an answer has ended.

        Args:
            model: the policy or the reference.
            input_ids: prompts, padded on the left, and answers, padded on the right [B, T].
            attention_mask: 0 on padding [B, T].
            logits_to_keep: K, the tokens of the longest answer.
            batch_size: rows of one pass; None takes all at once.
        """
        labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
        labels[:, :-logits_to_keep] = IGNORED
        output_layer = self.accelerator.unwrap_model(model).get_output_embeddings()
        parts = []
        for start in range(0, len(labels), batch_size or len(labels)):
            rows = slice(start, start + (batch_size or len(labels)))
            batch = {
                "input_ids": input_ids[rows],
                "attention_mask": attention_mask[rows],
                "labels": labels[rows],
            }
            with self.accelerator.autocast():
                logits, targets = label_logits(model, output_layer, batch)
            table = (logits / self.temperature).log_softmax(dim=-1)
            logprobs = table.gather(-1, targets[:, None])[:, 0]
            entropies = -(table.exp() * table).sum(dim=-1).detach()
            places = label_positions(labels[rows])[:, -logits_to_keep - 1 : -1]
            parts.append(
                [logprobs.new_zeros(places.shape).masked_scatter(places, x) for x in (logprobs, entropies)]
            )
        return torch.cat([p for p, _ in parts]), torch.cat([e for _, e in parts]), None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's `STEP_MEANS` to the line that carries the loss, in place of all that TRL would add."""
        found = self._metrics["train"]
        if "loss" in logs:
            logs |= {
                ours: sum(found[name]) / len(found[name]) for ours, name in STEP_MEANS.items() if found[name]
            }
        found.clear()
        super().log(logs, start_time)

    def _send_telemetry(self) -> None:
        """Send nothing (TRL reports each run's kind of hardware and data to the hub otherwise)."""


def train_adapter(recipe: Recipe, session: Session[Asked], on_step: OnStep) -> dict[str, float]:
    """Train, save the adapter into `session.adapter` and return the run's figures.

    Returns:
        Means of the last ten steps: `train_loss` (near 0 by its making), `train_reward`, `train_answer_tokens` and
        `train_cut_frac`. Mean reward of likeliest answers to the held-out prompts, absent without any: before training
        `held_out_reward_start`, after it `held_out_reward`; early stopping looks at it with its sign turned.
        `n_steps`, `n_epochs`, `n_tokens` (of prompts and sampled answers, padding not counted), `train_s`.

    Raises:
        TrainingFailed: the loss is not finite, at the step it happened.
        DataError: a reward failed, or was no finite number.
        StoreError: the disk did not take the adapter.
        CouldNotRun: the base does not load.
        InvalidEvidence: the weights of the adapter that is continued do not fit its configuration.
    """
    prompts, held_out = session.examples.train, session.examples.held_out
    order = prompt_order(recipe, prompts, n_steps_of(recipe, len(prompts)))
    trainer = build_trainer(recipe, session, order, Watch(recipe, on_step))
    with disable_input_dtype_casting(trainer.model, active=recipe.precision == "bf16"):
        before = mean_reward(trainer, recipe, session, held_out)
        trained = run_trainer(trainer, session, lambda: -mean_reward(trainer, recipe, session, held_out))
        after = mean_reward(trainer, recipe, session, held_out)
    if REFERENCE in trainer.model.peft_config:
        trainer.model.delete_adapter(REFERENCE)
    save_adapter(trainer.model, session.adapter)
    last = [line for line in trainer.state.log_history if "reward" in line][-N_LAST:]
    means = {name: sum(f[name] for f in last) / len(last) for name in ("reward", "answer_tokens", "cut_frac")}
    n_asked = trained.n_steps * recipe.step_batch.n_rows // _method(recipe).n_answers
    own = {
        **{f"train_{name}": value for name, value in means.items()},
        "n_epochs": n_asked / len(prompts),
        "n_tokens": float(trainer.state.num_input_tokens_seen),
    }
    rewards = {"held_out_reward": after, "held_out_reward_start": before} if held_out else {}
    return trained.figures | own | rewards


def prompt_order(recipe: Recipe, prompts: Sequence[Asked], n_steps: int) -> list[int]:
    """Numbers of the prompts in the order they are asked, as many a step as its answers make groups."""
    per_step = recipe.step_batch.n_rows // _method(recipe).n_answers
    steps = Batch(per_device=per_step, group_by_length=recipe.batch.group_by_length)
    return training_order([prompt.n_tokens for prompt in prompts], n_steps, steps, recipe.seed)


def build_trainer(
    recipe: Recipe, session: Session[Asked], order: Sequence[int], on_step: OnStep
) -> AskingGRPOTrainer:
    """The trainer over the prompts in the given order."""
    asked = [session.examples.train[i] for i in order]
    tokenizer = tokenizer_with_padding(session.base)
    trainer = AskingGRPOTrainer(
        model=load_base(session.base, recipe, session.device),
        reward_funcs=[_as_trl_calls_it(scorer, asked) for scorer in session.aids.scorers],
        args=trainer_settings(recipe, session, len(order)),
        train_dataset=Dataset.from_dict({"prompt": [str(place) for place in range(len(asked))]}),
        processing_class=tokenizer,
        peft_config=adapter_config(recipe.lora, session.parent),
        callbacks=[StepReporter(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.asked = asked
    ends, pad = trainer.eos_token_ids, tokenizer.pad_token_id
    trainer.limits = Limits(_method(recipe).max_answer_tokens, ends, pad)
    set_first_weights(trainer.model, session.parent)
    if session.parent is not None and _method(recipe).beta:
        _keep_reference(trainer.model)
    return trainer


def _keep_reference(model: Any) -> None:
    """Copy the adapter that is continued into a second one that stays as it is; TRL reads it as the reference."""
    model.add_adapter(REFERENCE, model.peft_config["default"])
    for name, weight in model.named_parameters():
        if f".{REFERENCE}." in name:
            weight.data = model.get_parameter(name.replace(f".{REFERENCE}.", ".default.")).data.clone()
            weight.requires_grad_(False)
    model.set_adapter("default")


def _as_trl_calls_it(scorer: Scorer, asked: Sequence[Asked]) -> Callable[..., list[float]]:
    """A scorer with the arguments that TRL gives: places of prompts, texts, and token ids."""

    def rewards(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        sampled = zip(prompts, completions, completion_ids, strict=True)
        return scorer.rewards([Answer(asked[int(i)], text, tuple(ids)) for i, text, ids in sampled])

    rewards.__name__ = scorer.name
    return rewards


def _method(recipe: Recipe) -> Grpo:
    if not isinstance(recipe.method, Grpo):
        raise TypeError(f"recipe {recipe.name}: its method is {recipe.method.kind}, not grpo")
    return recipe.method


def trainer_settings(recipe: Recipe, session: Session[Asked], n_prompts: int) -> GRPOConfig:
    """TRL's settings for a recipe over `n_prompts` ordered prompts; none that shapes the result is left out."""
    method = _method(recipe)
    shared = shared_settings(recipe, session, n_prompts * method.n_answers // recipe.step_batch.n_rows)
    shared.pop("max_length")  # prompts are never cut, and TRL has no such setting here
    return GRPOConfig(
        **shared,
        num_generations=method.n_answers,
        max_completion_length=method.max_answer_tokens,
        temperature=method.temperature,
        top_p=method.top_p,
        top_k=0,
        min_p=None,
        repetition_penalty=1.0,
        beta=method.beta,
        loss_type=method.loss,
        scale_rewards=method.scale_rewards,
        reward_weights=[scorer.weight for scorer in session.aids.scorers],
        multi_objective_aggregation="sum_then_normalize",
        importance_sampling_level="token",
        # One update from each step's answers: the ratio to the sampling policy is 1, and nothing is clipped.
        num_iterations=1,
        steps_per_generation=recipe.batch.accumulation,
        epsilon=0.2,
        mask_truncated_completions=False,
        top_entropy_quantile=1.0,
        entropy_coef=0.0,
        disable_dropout=True,
        shuffle_dataset=False,
        use_vllm=False,
        log_completions=False,
    )


def mean_reward(
    trainer: AskingGRPOTrainer, recipe: Recipe, session: Session[Asked], prompts: Sequence[Asked]
) -> float:
    """Mean over prompts of the weighted rewards of the likeliest answers under the trainer's model; NaN without any."""
    if not prompts:
        return math.nan
    answers = [
        answer
        for start in range(0, len(prompts), recipe.batch.per_device)
        for answer in _likeliest(trainer, recipe, prompts[start : start + recipe.batch.per_device])
    ]
    scorers = session.aids.scorers
    return sum(scorer.weight * sum(scorer.rewards(answers)) for scorer in scorers) / len(answers)


def _likeliest(trainer: AskingGRPOTrainer, recipe: Recipe, prompts: Sequence[Asked]) -> Iterator[Answer]:
    model = without_dropout(trainer.model)
    with precision(recipe, next(model.parameters()).device.type):
        found = answer_ids(model, [prompt.prompt_ids for prompt in prompts], trainer.limits)
    for prompt, ids in zip(prompts, found, strict=True):
        text = trainer.processing_class.decode(ids, skip_special_tokens=True)
        yield Answer(prompt, text, tuple(ids))
