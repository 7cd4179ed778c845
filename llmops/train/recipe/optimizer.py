"""How the weights move: AdamW and its learning rate. Part of every recipe, at its top."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from llmops.train.recipe.settings import Settings

Schedule = Literal[
    "linear", "cosine", "constant", "cosine_with_min_lr", "warmup_stable_decay", "inverse_sqrt"
]
DECAY_FRAC = 0.2


class Optimizing(Settings):
    """AdamW (Loshchilov 2019, arXiv:1711.05101) and the course of its learning rate."""

    learning_rate: float = Field(2e-4, gt=0)
    """Highest learning rate of AdamW."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up; warmup_stable_decay stays at the top until its last part."""
    warmup_frac: float = Field(0.0, ge=0, lt=1)
    """Fraction of the steps in which the learning rate rises from 0."""
    min_lr_frac: float = Field(0.0, ge=0, lt=1)
    """Where cosine_with_min_lr and warmup_stable_decay end, as a fraction of learning_rate."""
    decay_frac: float = Field(DECAY_FRAC, gt=0, le=1)
    """Fraction of the steps in which warmup_stable_decay falls."""
    weight_decay: float = Field(0.0, ge=0)
    """Share of the adapter's weights that AdamW takes off at every step, times the learning rate."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Longer gradients are cut to this length."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """How slowly AdamW's means of the gradient and of its square forget."""

    @field_validator("adam_betas")
    @classmethod
    def _forgets(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("both have to be at least 0 and less than 1")
        return value

    @model_validator(mode="after")
    def _fits_schedule(self) -> Optimizing:
        if self.min_lr_frac and self.schedule not in ("cosine_with_min_lr", "warmup_stable_decay"):
            raise ValueError(
                "min_lr_frac: is for schedule cosine_with_min_lr or warmup_stable_decay; leave it out"
            )
        if self.decay_frac != DECAY_FRAC and self.schedule != "warmup_stable_decay":
            raise ValueError("decay_frac: is for schedule warmup_stable_decay; leave it out")
        if self.schedule == "warmup_stable_decay" and self.warmup_frac + self.decay_frac > 1:
            raise ValueError("warmup_frac and decay_frac come to more than 1; lower one")
        return self
