"""Supervised fine-tuning of a LoRA adapter: from encoded rows to a PEFT folder and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from llmops.train.documents import PackedCollator, require_apart
from llmops.train.loop import IGNORED, LabelScoredSFTTrainer, OnStep, StepReporter, label_nll, unmasked
from llmops.train.mapped import mapped_dataset
from llmops.train.model import adapter_config, load_base
from llmops.train.order import n_sequences, n_steps_of, pack_tokens_of, training_order
from llmops.train.packing import packed_order
from llmops.train.recipe import Recipe
from llmops.train.rows import Example, token_lengths
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
    without_dropout,
)
from llmops.train.spool import ChosenExamples


def train_adapter(recipe: Recipe, session: Session[Example], on_step: OnStep) -> dict[str, float]:
    """Train, save the adapter into `session.adapter` and return the run's figures.

    Returns:
        `train_loss` (mean of the last ten steps, nats a label), `held_out_loss` and `held_out_loss_base` (absent
        without held-out rows), `n_steps`, `n_epochs`, `n_tokens` (padding not counted), `padding_frac` (of whole
        passes; a CPU takes them in parts and pads less), `train_s`, and with early stopping `best_step`,
        whose weights are saved.

    Raises:
        TrainingFailed: the loss is not finite, at the step it happened.
        StoreError: the disk did not take the adapter.
        CouldNotRun: the base does not load.
        ConfigError: rows are to be packed, and the base would let them see one another.
    """
    lengths = token_lengths(session.examples.train)
    rows = rows_in_order(recipe, lengths)
    trainer = build_trainer(recipe, session, rows, Watch(recipe, on_step))
    # PEFT would turn bfloat16 inputs into fp32 and autocast turn them back: 9 % of a step for the same numbers.
    with disable_input_dtype_casting(trainer.model, active=recipe.precision == "bf16"):
        if recipe.batch.packing:
            with precision(recipe, session.device):
                require_apart(trainer.model, trainer.model.config.get_text_config().vocab_size, recipe.name)
        trained = run_trainer(trainer, session, lambda: _mean_loss(trainer, _by_length(session), recipe))
        held_out = _held_out(trainer, recipe, session)
    rows = rows[: trained.n_steps * recipe.step_batch.n_rows]
    figures = trained.figures | {
        "n_epochs": sum(map(len, rows)) / len(lengths),
        **token_figures(
            [sum(lengths[i] for i in row) for row in rows], range(len(rows)), recipe.batch.per_device
        ),
    }
    save_adapter(trainer.model, session.adapter)
    return figures | held_out


def rows_in_order(recipe: Recipe, lengths: Sequence[int]) -> list[list[int]]:
    """Every row that is read, in order, as the numbers of the examples in it: one, or with packing several.

    All steps are laid down here, before the first of them, so a run that is resumed reads what it would have read.
    """
    n_steps = n_steps_of(recipe, n_sequences(recipe, lengths))
    if recipe.batch.packing:
        return packed_order(lengths, n_steps * recipe.step_batch.n_rows, pack_tokens_of(recipe), recipe.seed)
    return [[i] for i in training_order(lengths, n_steps, recipe.step_batch, recipe.seed)]


def build_trainer(
    recipe: Recipe, session: Session[Example], rows: Sequence[Sequence[int]], on_step: OnStep
) -> LabelScoredSFTTrainer:
    """The trainer over the training examples, `rows` saying which of them make up each row that is read.

    Its adapter is freshly made from the recipe's seed, or has the weights of the one that is continued.
    """
    examples, tokenizer = session.examples.train, tokenizer_with_padding(session.base)
    scratch = session.scratch if isinstance(examples, ChosenExamples) else None
    if recipe.batch.packing:
        dataset, collator = to_packed_dataset(examples, rows, scratch), PackedCollator(tokenizer.pad_token_id)
    else:
        dataset, collator = to_dataset(examples, scratch).select([i for row in rows for i in row]), None
    trainer = LabelScoredSFTTrainer(
        model=load_base(session.base, recipe, session.device),
        args=trainer_settings(recipe, session, len(rows)),
        train_dataset=dataset,
        processing_class=tokenizer,
        data_collator=collator,
        peft_config=adapter_config(recipe.lora, session.parent),
        callbacks=[StepReporter(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    set_first_weights(trainer.model, session.parent)
    return trainer


def trainer_settings(recipe: Recipe, session: Session[Example], n_rows: int) -> SFTConfig:
    """TRL's settings for a recipe over `n_rows` ordered rows, which come with labels: nothing is left to prepare."""
    shared = shared_settings(recipe, session, n_rows // recipe.step_batch.n_rows)
    return SFTConfig(**shared, dataset_kwargs={"skip_prepare_dataset": True})


def to_dataset(examples: Sequence[Example], scratch: Path | None = None) -> Dataset:
    """Rows as TRL takes them ready-made: input_ids and labels, `IGNORED` where our loss mask is 0.

    In memory, or mapped from a file in the folder `scratch`.
    """
    rows = map(_columns, examples)
    if scratch is not None:
        return mapped_dataset(rows, ("input_ids", "labels"), scratch / "examples.arrow")
    return Dataset.from_list(list(rows))


def to_packed_dataset(
    examples: Sequence[Example], rows: Sequence[Sequence[int]], scratch: Path | None = None
) -> Dataset:
    """Packed rows for `PackedCollator`: the examples' tokens and labels one after the other, and where they end."""
    packed = (_packed([examples[i] for i in row]) for row in rows)
    if scratch is not None:
        return mapped_dataset(packed, ("input_ids", "labels", "seq_lengths"), scratch / "packed.arrow")
    return Dataset.from_list(list(packed))


def _columns(example: Example) -> dict[str, list[int]]:
    ids, mask = example.encoded.input_ids, example.encoded.loss_mask
    labels = [token if scored else IGNORED for token, scored in zip(ids, mask, strict=True)]
    return {"input_ids": list(ids), "labels": labels}


def _packed(examples: Sequence[Example]) -> dict[str, list[int]]:
    alone = [_columns(example) for example in examples]
    joined = {name: [token for one in alone for token in one[name]] for name in ("input_ids", "labels")}
    return {**joined, "seq_lengths": [example.n_tokens for example in examples]}


def _held_out(trainer: Any, recipe: Recipe, session: Session[Example]) -> dict[str, float]:
    """Mean loss a label over the held-out rows, with the adapter and without; none when nothing is held out."""
    rows = _by_length(session)
    if not rows:
        return {}
    with trainer.model.disable_adapter():
        base = _mean_loss(trainer, rows, recipe)
    return {"held_out_loss": _mean_loss(trainer, rows, recipe), "held_out_loss_base": base}


def _by_length(session: Session[Example]) -> list[Example]:
    return sorted(session.examples.held_out, key=lambda e: e.n_tokens)


def _mean_loss(trainer: Any, rows: Sequence[Example], recipe: Recipe) -> float:
    total, n_labels = 0.0, 0
    model = without_dropout(trainer.model)
    device = next(model.parameters()).device
    collator = DataCollatorForLanguageModeling(trainer.processing_class.pad_token_id)
    for start in range(0, len(rows), recipe.batch.per_device):
        part = list(to_dataset(rows[start : start + recipe.batch.per_device]))
        batch = {name: tensor.to(device) for name, tensor in unmasked(collator(part)).items()}
        with torch.no_grad(), precision(recipe, device.type):
            nll, n = label_nll(model, model.get_output_embeddings(), batch)
        total, n_labels = total + float(nll), n_labels + n
    return total / n_labels
