"""Recipes: what one training run is made from, as YAML. Every value is checked before anything is loaded.

Reads a recipe's file; imports no machine learning library.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from llmops.data.quality.config import Quality
from llmops.errors import BadRequest
from llmops.records import PromptContract
from llmops.registry.adapters import require_name
from llmops.settings import load_yaml
from llmops.train.recipe.adapter import Lora, Merge
from llmops.train.recipe.batch import Batch
from llmops.train.recipe.control import Checkpoints, EarlyStopping
from llmops.train.recipe.launch import Launch
from llmops.train.recipe.methods import (
    AdapterReward,
    Distill,
    Dpo,
    EndpointTeacher,
    Grpo,
    Kto,
    Method,
    ModelTeacher,
    Orpo,
    PythonReward,
    Reward,
    Sft,
)
from llmops.train.recipe.optimizer import Optimizing
from llmops.train.recipe.overrides import Overrides, parse_override, set_words
from llmops.train.recipe.serving import Serve
from llmops.train.recipe.sources import (
    AnySource,
    DatasetSource,
    FileSource,
    HttpSource,
    HubSource,
    MixturePart,
    MixtureSource,
    PreferenceSource,
    SqlSource,
    parts_of,
)
from llmops.train.recipe.sweep import Range, Sweep

__all__ = [
    "AdapterReward",
    "AnySource",
    "Batch",
    "Checkpoints",
    "DatasetSource",
    "Distill",
    "Dpo",
    "EarlyStopping",
    "EndpointTeacher",
    "FileSource",
    "Grpo",
    "HttpSource",
    "HubSource",
    "Kto",
    "Launch",
    "Lora",
    "Merge",
    "Method",
    "MixturePart",
    "MixtureSource",
    "ModelTeacher",
    "Orpo",
    "Overrides",
    "PreferenceSource",
    "PythonReward",
    "Range",
    "Recipe",
    "Reward",
    "Serve",
    "Sft",
    "SqlSource",
    "Sweep",
    "load_recipe",
    "parse_override",
    "set_words",
]


class Recipe(Optimizing):
    """One training run."""

    name: str
    """Name of the adapter: lower-case letters, digits, - and _."""
    base_model: str
    """The model to start from: pypi:NAME==VERSION/FILE.gguf, a hub id (owner/name@commit), or a folder."""
    method: Annotated[Method, Field(discriminator="kind")]
    """How to train."""
    data: Annotated[AnySource, Field(discriminator="kind")]
    """What to train on: conversations, or answers that were judged; each method says what it learns from."""
    continue_from: str | None = None
    """The adapter whose weights training begins with: a public name (its champion), or any adapter reference. Its shape
    and system prompt are taken over: leave `lora` and `system` out."""
    system: str | None = None
    """Default system prompt, put before conversations that bring none, in training as in serving."""
    lora: Lora = Lora()
    """The shape of the adapter."""
    merge: Merge | None = None
    """Also make the merged model, as `llmops merge` would; a DoRA adapter is served in this way alone."""
    max_tokens: int = Field(512, ge=8)
    """Longest row, in tokens (of a pair: the longer side); longer ones are dropped and counted, never cut."""
    quality: Quality = Quality()
    """Checks of the rows: copies, personal data, language, length, and cases of the suites among them."""
    drop_budget_frac: float = Field(0.0, ge=0, lt=1)
    """Fraction of the rows that may be dropped (too long, malformed, no exact loss mask) before that is an error."""
    batch: Batch = Batch()
    """How rows come together in one step."""
    n_steps: int | None = Field(None, ge=1)
    """Optimizer steps to take; give this or n_epochs."""
    n_epochs: float | None = Field(None, gt=0)
    """Passes over the rows; give this or n_steps."""
    precision: Literal["auto", "bf16", "fp32", "fp16"] = "auto"
    """Type of the base model's weights and arithmetic; the adapter's own weights are always fp32. auto: bf16 where the
    device multiplies in it (GPUs; CPUs with AVX-512 bf16 or AMX), else fp32, which is several times faster there. fp16
    scales the loss so that small gradients are not lost, and needs a CUDA device."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Holds the base model in 4 bits (nf4: QLoRA; needs bitsandbytes) or 8 (int8; needs torchao) while training."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a quarter slower."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the adapter's first weights, of dropout, of the order of rows and of what is held out."""
    held_out_frac: float = Field(0.02, ge=0, le=0.5)
    """Fraction of the rows that is not trained on, by whole groups: gives the held-out loss and the probes."""
    checkpoint: Checkpoints = Checkpoints()
    """How often the run is saved, so that `llmops finetune --resume` can go on with it."""
    early_stopping: EarlyStopping | None = None
    """Ends training when the held-out loss falls no more; unset: all steps are taken and the last weights kept."""
    tracking: Literal["mlflow", "none"] | None = None
    """Where parameters and curves are shown; unset: what llmops.yaml says. metrics.jsonl is always written."""
    report_to: tuple[str, ...] = ()
    """Other trackers of transformers' that get the curves (tensorboard, wandb ...), set up as their own pages say."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: a CUDA device if there is one."""
    serve: Serve | None = None
    """The engine the adapter is meant for; unset: vLLM of any size."""
    memory: Literal["refuse", "warn"] = "refuse"
    """What happens when the run's estimated memory is clearly more than the device has free: it is refused before
    weights load, or goes on with a warning."""
    launch: Launch = Launch()
    """In how many processes to train."""
    sweep: Sweep | None = Field(None, exclude=True)
    """What `llmops sweep` may change, and what it looks for; `llmops finetune` does not read it."""

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
    def _fits_method(cls, value: AnySource, info: ValidationInfo) -> AnySource:
        # What files and other sources hold is told from their rows.
        method = info.data.get("method")
        if method is None:
            return value
        kinds = {part.source.kind for part in parts_of(value)}
        if "preferences" in kinds and "pairs" not in method.learns_from:
            raise ValueError(
                f"preferences are for method dpo, kto or orpo, not {method.kind}; set one of them, or give other data"
            )
        if "dataset" in kinds and not {"conversations", "judged"} & set(method.learns_from):
            raise ValueError(
                f"method {method.kind} learns from pairs; give {{kind: preferences, name: CAMPAIGN}}, or files of them"
            )
        return value

    @field_validator("lora")
    @classmethod
    def _without_dropout(cls, value: Lora, info: ValidationInfo) -> Lora:
        # An adapter that is continued has the dropout it has; the trainer turns it off.
        method = info.data.get("method")
        if (
            method is not None
            and not isinstance(method, Sft | Distill)
            and not info.data.get("continue_from")
            and value.dropout
        ):
            raise ValueError(f"{method.kind} compares answers and trains without dropout; leave dropout at 0")
        return value

    @field_validator("launch")
    @classmethod
    def _fits_processes(cls, value: Launch, info: ValidationInfo) -> Launch:
        if isinstance(info.data.get("method"), Grpo) and value.strategy == "fsdp":
            raise ValueError("grpo samples from a model that is whole; set strategy: ddp")
        return value

    @property
    def step_batch(self) -> Batch:
        """The rows of one step over all processes, as one process would take them: passes of all count together.

        Process p of n takes passes p, p + n, ... of the order (accelerate's sharding of a sequential sampler), so equal
        orders mean equal steps however many processes share them.
        """
        n_passes = self.batch.accumulation * self.launch.processes
        return self.batch.model_copy(update={"accumulation": n_passes})

    def contract_on(self, base: PromptContract) -> PromptContract:
        """The base model's prompt contract with this recipe's default system prompt."""
        return replace(base, system=self.system)

    @model_validator(mode="after")
    def _length(self) -> Recipe:
        if (self.n_steps is None) == (self.n_epochs is None):
            which = "neither is" if self.n_steps is None else "both are"
            raise ValueError(f"n_steps, n_epochs: {which} given; give one of them")
        if self.early_stopping and not self.held_out_frac:
            raise ValueError("early_stopping: looks at the held-out loss; set held_out_frac over 0")
        if self.quantization == "nf4" and self.precision in ("fp32", "fp16"):
            raise ValueError("quantization: nf4 computes in bf16; set precision: bf16")
        if isinstance(self.method, Reward) and self.continue_from is not None:
            raise ValueError("continue_from: a reward model begins with the base; leave it out")
        if isinstance(self.method, Kto) and self.batch.per_device < 2:
            raise ValueError("batch.per_device: kto compares the answers of one pass; give 2 or more")
        if isinstance(self.method, Grpo) and self.step_batch.n_rows % self.method.n_answers:
            raise ValueError(
                f"batch: a step of {self.step_batch.n_rows} answers (per_device * accumulation * launch.processes) is "
                f"no whole number of groups of {self.method.n_answers} answers (method.n_answers); change one of them"
            )
        return self

    @model_validator(mode="after")
    def _served_merged(self) -> Recipe:
        if self.lora.use_dora and self.merge is None and not isinstance(self.method, Reward):
            raise ValueError(
                "lora.use_dora: no engine serves a DoRA adapter; set merge: {dtype: bf16} and serve the merged model, "
                "or use_dora: false"
            )
        if self.merge is not None and isinstance(self.method, Reward):
            raise ValueError("merge: a reward model does not generate; leave it out")
        return self

    @model_validator(mode="after")
    def _packing(self) -> Recipe:
        batch = self.batch
        if batch.packing and not isinstance(self.method, Sft):
            raise ValueError(f"batch.packing: is for method sft, not {self.method.kind}; set packing: false")
        if batch.pack_tokens is not None and not batch.packing:
            raise ValueError("batch.pack_tokens: does nothing without packing; set packing: true")
        if batch.pack_tokens is not None and batch.pack_tokens < self.max_tokens:
            raise ValueError(
                f"batch.pack_tokens: {batch.pack_tokens} is less than max_tokens {self.max_tokens}, and rows are never "
                "cut; raise it"
            )
        return self


def load_recipe(path: Path, overrides: Overrides = ()) -> Recipe:
    """The recipe in a YAML file, with some of its settings replaced.

    Raises:
        ConfigError: the file is missing, is not YAML, or has a wrong or unknown setting.
    """
    return load_yaml(path, Recipe, overrides)
