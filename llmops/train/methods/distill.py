"""Distillation of a LoRA adapter from a teacher's distributions: from encoded rows to a PEFT folder and its figures.

Teacher and student are compared where the rows' answers are, and nowhere else: both output layers run there alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback

from llmops.train.loop import LabelScoredSFTTrainer, OnStep, StepReporter, label_logits
from llmops.train.methods.sft import to_dataset, trainer_settings
from llmops.train.methods.sft import train_adapter as learn_answers
from llmops.train.model import adapter_config, load_base
from llmops.train.order import n_steps_of, training_order
from llmops.train.recipe import Distill, EndpointTeacher, ModelTeacher, Recipe
from llmops.train.rows import Example
from llmops.train.session import (
    Session,
    Watch,
    precision,
    run_trainer,
    save_adapter,
    set_first_weights,
    token_figures,
    tokenizer_with_padding,
    without_dropout,
)


@dataclass(frozen=True)
class Sums:
    """Over a batch's labels, in nats: divergence from the teacher, the student's loss and the teacher's; how many."""

    divergence: torch.Tensor
    student_nll: torch.Tensor
    teacher_nll: torch.Tensor
    n_labels: int


def divergences(settings: ModelTeacher, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Divergence in nats at each of N positions [N], from logits [N, V] of student and teacher."""
    s = F.log_softmax(student / settings.temperature, dim=-1)
    t = F.log_softmax(teacher / settings.temperature, dim=-1)
    if settings.divergence == "forward_kl":
        return _kl(t, s)
    if settings.divergence == "reverse_kl":
        return _kl(s, t)
    share = torch.tensor(settings.jsd_beta, device=s.device)
    mixture = torch.logaddexp(t + share.log(), s + torch.log1p(-share))
    return share * _kl(t, mixture) + (1 - share) * _kl(s, mixture)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of log-probabilities over the last dimension."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)


class DistillTrainer(LabelScoredSFTTrainer):
    """TRL's SFT trainer with the divergence from a teacher as its loss, on label positions alone."""

    settings: ModelTeacher
    teacher: Any

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mean divergence a label of the step, in nats, with the part that `sft_weight` adds; same contract as TRL's.

        Raises:
            NotImplementedError: outputs are asked for; there are no logits of whole rows to give.
        """
        if return_outputs:
            raise NotImplementedError("label-scored loss keeps no logits; set prediction_loss_only")
        sums = self.compare(model, inputs)
        total = sums.divergence + self.settings.sft_weight * sums.student_nll
        mean = total / (sums.n_labels if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            mean = mean * self.accelerator.num_processes  # DDP averages gradients over processes
        return mean

    def compare(self, model: Any, batch: dict[str, torch.Tensor]) -> Sums:
        """Student and teacher on a batch: input_ids, attention_mask and labels, each [B, T]."""
        output_layer = self.accelerator.unwrap_model(model).get_output_embeddings()
        student, targets = label_logits(model, output_layer, batch)
        with torch.no_grad():
            teacher, _ = label_logits(self.teacher, self.teacher.get_output_embeddings(), batch)
        # One tokenizer, but output layers may be rounded up to different sizes: what no token has is left out.
        n = min(student.shape[1], teacher.shape[1])
        student, teacher = student[:, :n], teacher[:, :n]
        return Sums(
            divergences(self.settings, student, teacher).sum(),
            F.cross_entropy(student, targets, reduction="sum"),
            F.cross_entropy(teacher, targets, reduction="sum"),
            targets.numel(),
        )


def train_adapter(recipe: Recipe, session: Session[Example], on_step: OnStep) -> dict[str, float]:
    """Train, save the adapter into `session.adapter` and return the run's figures.

    What a teacher behind an endpoint has answered is learnt by method sft, with that method's figures.

    Returns:
        Of the last ten steps: `train_loss`. Of the held-out rows, absent without any, in nats a label: the divergence
        `held_out_loss`, the student's own loss `held_out_nll`, both also before the first step (`..._start`), and
        `held_out_nll_teacher`. `n_steps`, `n_epochs`, `n_tokens` (padding not counted), `padding_frac`, `train_s`.

    Raises:
        TrainingFailed: the loss is not finite, at the step it happened.
        StoreError: the disk did not take the adapter.
        CouldNotRun: the base or the teacher does not load.
    """
    if isinstance(recipe.method, Distill) and isinstance(recipe.method.teacher, EndpointTeacher):
        return learn_answers(recipe, session, on_step)  # the rows have its answers already
    lengths = [example.n_tokens for example in session.examples.train]
    n_steps = n_steps_of(recipe, len(lengths))
    order = training_order(lengths, n_steps, recipe.step_batch, recipe.seed)
    trainer = build_trainer(recipe, session, order, Watch(recipe, on_step))
    with disable_input_dtype_casting(trainer.model, active=recipe.precision == "bf16"):
        before = _held_out(trainer, recipe, session.examples.held_out)
        held_out = session.examples.held_out
        trained = run_trainer(trainer, session, lambda: _held_out(trainer, recipe, held_out)["held_out_loss"])
        after = _held_out(trainer, recipe, session.examples.held_out)
    order = order[: trained.n_steps * recipe.step_batch.n_rows]
    save_adapter(trainer.model, session.adapter)
    return {
        **trained.figures,
        "n_epochs": len(order) / len(lengths),
        **token_figures(lengths, order, recipe.batch.per_device),
        **after,
        **{f"{name}_start": value for name, value in before.items() if not name.endswith("_teacher")},
    }


def build_trainer(
    recipe: Recipe, session: Session[Example], order: Sequence[int], on_step: OnStep
) -> DistillTrainer:
    """The trainer over the training rows in the given order, with its teacher loaded beside."""
    if not isinstance(recipe.method, Distill) or not isinstance(recipe.method.teacher, ModelTeacher):
        raise TypeError(f"recipe {recipe.name}: its method has no model as its teacher")
    trainer = DistillTrainer(
        model=load_base(session.base, recipe, session.device),
        args=trainer_settings(recipe, session, len(order)),
        train_dataset=to_dataset(session.examples.train).select(order),
        processing_class=tokenizer_with_padding(session.base),
        peft_config=adapter_config(recipe.lora, session.parent),
        callbacks=[StepReporter(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    set_first_weights(trainer.model, session.parent)
    trainer.settings, trainer.teacher = recipe.method.teacher, load_teacher(recipe, session)
    return trainer


def load_teacher(recipe: Recipe, session: Session[Example]) -> Any:
    """The teacher, for reading alone, in the recipe's precision (never in 4 bits: it is what is learnt from)."""
    teacher = session.aids.teacher
    if teacher is None:
        raise TypeError(f"recipe {recipe.name}: its teacher was not found beforehand")
    plain = recipe.model_copy(update={"quantization": "none"})
    model = load_base(teacher.base, plain, session.device).to(session.device)
    if teacher.adapter is not None:
        model = PeftModel.from_pretrained(model, str(teacher.adapter))
    return model.requires_grad_(False).eval()


def _held_out(trainer: DistillTrainer, recipe: Recipe, rows: Sequence[Example]) -> dict[str, float]:
    """What the held-out rows say under student and teacher as they are now; nothing without any."""
    if not rows:
        return {}
    model = without_dropout(trainer.model)
    device = next(model.parameters()).device
    ordered = sorted(rows, key=lambda row: row.n_tokens)
    totals, n_labels = torch.zeros(3), 0
    for start in range(0, len(ordered), recipe.batch.per_device):
        part = list(to_dataset(ordered[start : start + recipe.batch.per_device]))
        batch = {name: tensor.to(device) for name, tensor in trainer.data_collator(part).items()}
        with torch.no_grad(), precision(recipe, device.type):
            sums = trainer.compare(model, batch)
        totals += torch.stack([sums.divergence, sums.student_nll, sums.teacher_nll]).float().cpu()
        n_labels += sums.n_labels
    names = ("held_out_loss", "held_out_nll", "held_out_nll_teacher")
    return dict(zip(names, (totals / n_labels).tolist(), strict=True))
