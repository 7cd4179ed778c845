"""Supervised fine-tuning of a LoRA adapter: from encoded rows to a PEFT folder and its figures.

Writes the adapter's folder and nothing else; rows, records and ledger are the caller's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft.helpers import disable_input_dtype_casting
from safetensors import SafetensorError
from transformers import PrinterCallback
from trl import SFTConfig

from llmops.errors import StoreError, TrainingFailed
from llmops.registry.bases import Base
from llmops.train.loop import IGNORED, LabelScoredSFTTrainer, OnStep, StepReporter, label_nll
from llmops.train.model import load_base, load_tokenizer, lora_config
from llmops.train.order import n_steps_of, padding_frac, training_order
from llmops.train.recipe import Recipe
from llmops.train.rows import Example, Examples

N_LAST = 10  # steps whose loss is averaged for the run's closing figure


@dataclass(frozen=True)
class SftRun:
    """What a run needs besides its recipe: base, rows, device, and folders for scratch files and for the adapter."""

    base: Base
    examples: Examples
    device: str
    scratch: Path
    adapter: Path


def train_adapter(recipe: Recipe, run: SftRun, on_step: OnStep) -> dict[str, float]:
    """Train, save the adapter into `run.adapter` and return the run's figures.

    Returns:
        `train_loss` (mean of the last ten steps, nats a label), `held_out_loss` and `held_out_loss_base` (absent
        without held-out rows), `n_steps`, `n_epochs`, `n_tokens` (padding not counted), `padding_frac`, `train_s`.

    Raises:
        TrainingFailed: the loss is not finite, at the step it happened.
        StoreError: the disk did not take the adapter.
        CouldNotRun: the base does not load.
    """
    lengths = [example.n_tokens for example in run.examples.train]
    n_steps = n_steps_of(recipe, len(lengths))
    order = training_order(lengths, n_steps, recipe.batch, recipe.seed)
    losses: list[float] = []

    def watch(step: int, total: int, figures: dict[str, float]) -> None:
        _require_finite(figures, f"training of {recipe.name}: step {step} of {total}")
        losses.append(figures["loss"])
        on_step(step, total, figures)

    trainer = build_trainer(recipe, run, order, watch)
    started = time.monotonic()
    # PEFT would turn bfloat16 inputs into fp32 and autocast turn them back: 9 % of a step for the same numbers.
    with disable_input_dtype_casting(trainer.model, active=recipe.precision == "bf16"):
        trainer.train()
        train_s = time.monotonic() - started
        held_out = _held_out(trainer, recipe, run)
    figures = {
        "train_loss": sum(losses[-N_LAST:]) / len(losses[-N_LAST:]),
        "n_steps": float(n_steps),
        "n_epochs": len(order) / len(lengths),
        "n_tokens": float(sum(lengths[i] for i in order)),
        "padding_frac": padding_frac(lengths, order, recipe.batch.per_device),
        "train_s": train_s,
    }
    _save(trainer.model, run.adapter)
    return figures | held_out


def _require_finite(figures: dict[str, float], where: str) -> None:
    bad = [f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        raise TrainingFailed(f"{where}: {', '.join(bad)}; lower learning_rate")


def build_trainer(
    recipe: Recipe, run: SftRun, order: Sequence[int], on_step: OnStep
) -> LabelScoredSFTTrainer:
    """The trainer over the training rows in the given order, its adapter freshly made from the recipe's seed."""
    tokenizer = load_tokenizer(run.base)
    if tokenizer.pad_token_id is None:
        # Any token does: padding has no labels and is masked.
        tokenizer.pad_token_id = run.base.contract.eos_token_ids[0]
    trainer = LabelScoredSFTTrainer(
        model=load_base(run.base, recipe, run.device),
        args=trainer_settings(recipe, run, len(order)),
        train_dataset=to_dataset(run.examples.train).select(order),
        processing_class=tokenizer,
        peft_config=lora_config(recipe.lora),
        callbacks=[StepReporter(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # TRL makes them bfloat16 on a 4-bit base, which rounds AdamW's small steps away.
            parameter.data = parameter.data.float()
    return trainer


def trainer_settings(recipe: Recipe, run: SftRun, n_rows: int) -> SFTConfig:
    """TRL's settings for a recipe; all that shape the result are given, none left to a default that differs by version.

    Rows come ordered, encoded and with labels, so TRL neither shuffles nor prepares nor cuts them.
    """
    n_steps = n_rows // recipe.batch.n_rows
    return SFTConfig(
        output_dir=str(run.scratch),
        max_steps=n_steps,
        per_device_train_batch_size=recipe.batch.per_device,
        gradient_accumulation_steps=recipe.batch.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule if recipe.warmup_frac == 0 else _with_warmup(recipe.schedule),
        warmup_steps=round(recipe.warmup_frac * n_steps),
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=recipe.precision == "bf16",
        gradient_checkpointing=recipe.gradient_checkpointing,
        seed=recipe.seed,
        data_seed=recipe.seed,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        use_cpu=run.device == "cpu",
        dataloader_pin_memory=run.device != "cpu",
        prediction_loss_only=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        push_to_hub=False,
    )


def _with_warmup(schedule: str) -> str:
    return "constant_with_warmup" if schedule == "constant" else schedule


def to_dataset(examples: Sequence[Example]) -> Dataset:
    """Rows as TRL takes them ready-made: input_ids and labels, `IGNORED` where our loss mask is 0."""
    ids = [list(e.encoded.input_ids) for e in examples]
    masks = [e.encoded.loss_mask for e in examples]
    labels = [
        [token if scored else IGNORED for token, scored in zip(row, mask, strict=True)]
        for row, mask in zip(ids, masks, strict=True)
    ]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def _held_out(trainer: Any, recipe: Recipe, run: SftRun) -> dict[str, float]:
    """Mean loss a label over the held-out rows, with the adapter and without; none when nothing is held out."""
    rows = sorted(run.examples.held_out, key=lambda e: e.n_tokens)
    if not rows:
        return {}
    model = trainer.model.eval()
    with model.disable_adapter():
        base = _mean_loss(trainer, rows, recipe)
    return {"held_out_loss": _mean_loss(trainer, rows, recipe), "held_out_loss_base": base}


def _mean_loss(trainer: Any, rows: Sequence[Example], recipe: Recipe) -> float:
    total, n_labels = 0.0, 0
    model = trainer.model
    device = next(model.parameters()).device
    for start in range(0, len(rows), recipe.batch.per_device):
        part = list(to_dataset(rows[start : start + recipe.batch.per_device]))
        batch = {name: tensor.to(device) for name, tensor in trainer.data_collator(part).items()}
        with torch.no_grad(), _precision(recipe, device.type):
            nll, n = label_nll(model, model.get_output_embeddings(), batch)
        total, n_labels = total + float(nll), n_labels + n
    return total / n_labels


def _precision(recipe: Recipe, device: str) -> AbstractContextManager[object]:
    return torch.autocast(device, dtype=torch.bfloat16) if recipe.precision == "bf16" else nullcontext()


def _save(model: Any, folder: Path) -> None:
    try:
        model.save_pretrained(str(folder), save_embedding_layers=False)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{folder}: the adapter could not be written ({error}); free space and run the recipe again"
        ) from error
