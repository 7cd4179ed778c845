"""What every method of training shares: what a session needs, TRL's settings, its start, its watch, its end.

Writes the adapter's folder and nothing else; rows, records and ledger are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch
from safetensors import SafetensorError

from llmops.errors import Interrupted, StoreError, TrainingFailed
from llmops.registry.bases import Base
from llmops.schema import JsonDict
from llmops.train.aids import Aids
from llmops.train.loop import OnStep
from llmops.train.model import load_adapter_weights, load_tokenizer
from llmops.train.order import padding_frac
from llmops.train.ranks import place
from llmops.train.recipe import Recipe
from llmops.train.rows import E, Examples
from llmops.train.sharding import SETTINGS, RequireSharded, sharded_frac, whole_adapter
from llmops.train.steps import Control, HeldOut, StepControl

N_LAST = 10  # steps whose loss is averaged for the run's closing figure


@dataclass(frozen=True)
class Session(Generic[E]):
    """What training needs besides its recipe: base, rows, device, folders for scratch files and for the adapter.

    `parent` is the verified folder of the adapter whose weights training begins with; None begins with new ones. `aids`
    is what the method needs besides. `control` says when the run is saved and ended, and what it goes on from.
    """

    base: Base
    examples: Examples[E]
    device: str
    scratch: Path
    adapter: Path
    parent: Path | None = None
    aids: Aids = field(default_factory=Aids)
    control: Control = field(default_factory=Control)


@dataclass(frozen=True)
class Trained:
    """What a trainer's steps came to; of a resumed run, those before it was resumed too."""

    n_steps: int
    train_loss: float  # mean of the last ten steps
    train_s: float
    best_step: int | None  # whose weights the model has now, where early stopping looked

    @property
    def figures(self) -> dict[str, float]:
        """The figures that every method reports."""
        found = {"train_loss": self.train_loss, "n_steps": float(self.n_steps), "train_s": self.train_s}
        return found | ({} if self.best_step is None else {"best_step": float(self.best_step)})


def tokenizer_with_padding(base: Base) -> Any:
    """The base model's tokenizer, with some padding token."""
    tokenizer = load_tokenizer(base)
    if tokenizer.pad_token_id is None:
        # Any token does: padding has no labels and is masked.
        tokenizer.pad_token_id = base.contract.eos_token_ids[0]
    return tokenizer


def shared_settings(recipe: Recipe, session: Session[E], n_steps: int) -> JsonDict:
    """TRL's settings that are the same for every method; all that shape the result are given, none left to a default.

    Rows come ordered and encoded, so TRL neither shuffles nor cuts them.
    """
    return {
        "output_dir": str(session.scratch),
        "max_steps": n_steps,
        "per_device_train_batch_size": recipe.batch.per_device,
        "gradient_accumulation_steps": recipe.batch.accumulation,
        "learning_rate": recipe.learning_rate,
        **_schedule(recipe, n_steps),
        "optim": "adamw_torch" if session.device == "cpu" else "adamw_torch_fused",
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "adam_beta1": recipe.adam_betas[0],
        "adam_beta2": recipe.adam_betas[1],
        "bf16": recipe.precision == "bf16",
        "fp16": recipe.precision == "fp16",
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "pad_to_multiple_of": None,
        "use_cpu": session.device == "cpu",
        "dataloader_pin_memory": session.device != "cpu",
        "prediction_loss_only": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": list(recipe.report_to) or "none",
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
        "push_to_hub": False,
        "ddp_find_unused_parameters": False,
    } | (SETTINGS if recipe.launch.strategy == "fsdp" else {})


def _schedule(recipe: Recipe, n_steps: int) -> JsonDict:
    """How the learning rate goes, in transformers' words."""
    name, own = str(recipe.schedule), dict[str, float]()
    if recipe.schedule == "constant" and recipe.warmup_frac:
        name = "constant_with_warmup"
    if recipe.schedule == "cosine_with_min_lr":
        own = {"min_lr_rate": recipe.min_lr_frac}
    if recipe.schedule == "warmup_stable_decay":
        own = {"min_lr_ratio": recipe.min_lr_frac, "num_decay_steps": round(recipe.decay_frac * n_steps)}
    warmup = round(recipe.warmup_frac * n_steps)
    return {"lr_scheduler_type": name, "warmup_steps": warmup, "lr_scheduler_kwargs": own or None}


def set_first_weights(model: Any, parent: Path | None) -> None:
    """Make the adapter's weights fp32, and those of `parent` where there is one."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            # TRL makes them bfloat16 on a 4-bit base, which rounds AdamW's small steps away.
            parameter.data = parameter.data.float()
    if parent is not None:
        load_adapter_weights(model, parent)


def precision(recipe: Recipe, device: str) -> AbstractContextManager[object]:
    """The arithmetic a recipe asks for, outside of the trainer."""
    if recipe.precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float16
    found: AbstractContextManager[object] = torch.autocast(device, dtype=dtype)
    return found


def without_dropout(model: Any) -> Any:
    """The model as it answers: all in eval mode but for 4-bit layers on a CPU, which must never be; returns it.

    bitsandbytes 0.50 lays 4-bit weights out anew when they are first read in eval mode on a CPU; from then on no
    gradient passes through them, and training goes wrong in silence.
    """
    for module in model.modules():
        module.training = type(module).__name__ == "Linear4bit"
    return model


class Watch:
    """Looks at every step's figures before they are told on."""

    def __init__(self, recipe: Recipe, on_step: OnStep) -> None:
        """Tell `on_step` of each step."""
        self.recipe, self.on_step = recipe, on_step

    def __call__(self, step: int, total: int, figures: dict[str, float]) -> None:
        """Take one step's figures.

        Raises:
            TrainingFailed: one is not finite.
        """
        bad = [f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value)]
        if bad:
            where = f"training of {self.recipe.name}: step {step} of {total}"
            raise TrainingFailed(f"{where}: {', '.join(bad)}; lower learning_rate")
        self.on_step(step, total, figures)


def run_trainer(trainer: Any, session: Session[E], held_out: HeldOut | None = None) -> Trained:
    """Take all of a trainer's steps, or those behind the checkpoint that the session resumes.

    Every method trains through this function: here runs are saved, resumed, interrupted and stopped early.

    Args:
        trainer: with its adapter's first weights and its rows in their order.
        session: names the checkpoint, and who asks for an end.
        held_out: the loss over the held-out rows as the model is; early stopping needs it.

    Raises:
        Interrupted: somebody asked for an end; a checkpoint was written behind the last step.
        StoreError: the disk did not take a checkpoint.
        TrainingFailed: the model was to be sharded and is not.
    """
    if trainer.args.fsdp:
        trainer.add_callback(RequireSharded())
    hook = StepControl(trainer, session.control, held_out)
    trainer.callback_handler.callbacks.insert(0, hook)
    resume = session.control.resume
    try:
        with session.control.stop.steps():
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise StoreError(
            f"{session.scratch}: a checkpoint could not be written ({error}); free space"
        ) from error
    if hook.interrupted:
        raise Interrupted(
            f"training was stopped behind step {trainer.state.global_step}", session.control.stop.signal
        )
    hook.finish()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line][-N_LAST:]
    best_step = hook.lowest.step if hook.lowest and hook.lowest.weights else None
    return Trained(trainer.state.global_step, sum(losses) / len(losses), hook.train_s, best_step)


def token_figures(lengths: Sequence[int], order: Sequence[int], per_pass: int) -> dict[str, float]:
    """`n_tokens` (padding not counted) and `padding_frac` of sequences of these lengths, read in this order."""
    return {
        "n_tokens": float(sum(lengths[i] for i in order)),
        "padding_frac": padding_frac(lengths, order, per_pass),
    }


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter as a PEFT folder; of several processes the first writes, and all must call.

    Raises:
        StoreError: the disk did not take it.
    """
    gathered = {"state_dict": whole_adapter(model)} if sharded_frac(model) else {}
    if not place().first:
        return
    try:
        model.save_pretrained(str(folder), save_embedding_layers=False, **gathered)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{folder}: the adapter could not be written ({error}); free space and run the recipe again"
        ) from error
