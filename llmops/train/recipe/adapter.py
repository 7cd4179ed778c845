"""The shape of the adapter a recipe trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from llmops.train.recipe.settings import Settings


class Lora(Settings):
    """The shape of the adapter."""

    r: int = Field(16, ge=1, le=512)
    """Rank of the update matrices."""
    alpha: int | float = Field(32, gt=0)
    """Scale of the update: it is multiplied by alpha / r (by alpha / sqrt(r) with use_rslora)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Fraction of the adapter's inputs dropped while training."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Layers that get an update: `all-linear` (all but the output layer), or names such as `q_proj`."""
    use_rslora: bool = False
    """Rank-stabilised scale, alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""
    use_dora: bool = False
    """Weight-decomposed LoRA (Liu 2024, arXiv:2402.09353). Served merged alone: set `merge`."""

    @field_validator("target_modules")
    @classmethod
    def _trainable(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("names no layer; use all-linear or names such as q_proj")
        if "lm_head" in value:
            raise ValueError("lm_head cannot carry an update here (TRL scores it without one); leave it out")
        return value


class Merge(Settings):
    """A merged model made after training: base and adapter as one, checked, kept in the store, served as a base."""

    dtype: Literal["bf16", "fp32", "fp16"] = "bf16"
    """Type of the merged weights; merging itself is fp32."""
    tolerance_nats: float | None = Field(None, gt=0)
    """Mean nats a probed token by which the merged model may differ; unset: what rounding to the type explains."""
