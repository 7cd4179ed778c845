"""The estimate: what each part of a run holds on its device, and the peak over the run's stages.

On a CPU a run "needs" what must be resident at its peak: its own pages, and those of the weights' file while they are
copied from it. On a GPU it is the peak of torch's allocated bytes and the context beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmops.registry.bases import Base
from llmops.train.memory import constants
from llmops.train.memory.passes import Pass, largest, parts_of, usual
from llmops.train.memory.weights import Weights, weigh
from llmops.train.recipe import Distill, Dpo, Orpo, Recipe, Reward, Sft

DEPTHS = (2, 4)
"""Layers that are traced; what more layers hold follows a line through both (all layers but the first are alike)."""


@dataclass(frozen=True)
class Scene:
    """A run to be estimated: its recipe with a device, its base, and the rows it trains on."""

    recipe: Recipe
    base: Base
    parent: Path | None  # folder of the adapter that is continued
    rows: Sequence[Any]
    device: str
    teacher: Base | None = None


@dataclass(frozen=True)
class Estimate:
    """Bytes on `device`: of the parts of the training stage, and of each stage in all."""

    device: str
    parts: dict[str, int]
    phases: dict[str, int]
    largest: Pass

    @property
    def total_bytes(self) -> int:
        """The peak over the stages."""
        return max(self.phases.values())

    @property
    def stage(self) -> str:
        """The stage of the peak."""
        return max(self.phases, key=lambda name: self.phases[name])


def estimate(scene: Scene) -> Estimate:
    """What a run needs, to within `constants.LOWER` and `UPPER`; loads no weights.

    Args:
        scene: the run.
    """
    recipe, device = scene.recipe, scene.device
    passes = parts_of(recipe, scene.rows, device, shares_prompts(scene))
    weights = weigh(recipe, scene.base, scene.parent)
    steps = working_bytes(scene, passes)
    held = weights.base_bytes + 4 * weights.n_trained
    holes = (
        (constants.HEAP_FACTOR - 1) * steps + (constants.LOADED_FACTOR - 1) * held if device == "cpu" else 0
    )
    fixed = constants.LIBRARIES_BYTES if device == "cpu" else constants.CONTEXT_BYTES
    optimizer = 2 * 4 * weights.n_trained
    gradients = 4 * weights.n_trained
    teacher = weigh(recipe, scene.teacher, None).base_bytes if scene.teacher else 0
    parts = {
        "libraries": fixed + (constants.TRAINER_BYTES if device == "cpu" else 0),
        "weights": weights.base_bytes,
        "adapter": 4 * weights.n_trained,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations and logits": max(0, steps - gradients - optimizer),
    }
    parts |= {name: n for name, n in (("teacher", teacher), ("holes of the heap", round(holes))) if n}
    phases = {
        "load": fixed + weights.base_bytes + teacher + (weights.file_bytes if device == "cpu" else 0),
        "train": sum(parts.values()),
        "probe": fixed + _probe_bytes(weights, device),
    }
    return Estimate(device, parts, phases, largest(passes))


def shares_prompts(scene: Scene) -> bool:
    """Whether both answers of a pair are read in one row, behind their prompt."""
    if not isinstance(scene.recipe.method, Dpo | Orpo):
        return False
    from transformers import AutoConfig

    from llmops.train.documents import can_attend_in_documents

    return can_attend_in_documents(AutoConfig.from_pretrained(scene.base.path, local_files_only=True))


def mask_of(scene: Scene) -> Literal["none", "padding", "each pair"]:
    """What says which token sees which: the order alone, one number a token, or one for every two tokens of a row."""
    if isinstance(scene.recipe.method, Sft | Distill):
        return "none"
    return "each pair" if shares_prompts(scene) else "padding"


def _probe_bytes(weights: Weights, device: str) -> int:
    """Base and adapter in fp32, as they are probed, and on a CPU the file's pages."""
    file = weights.file_bytes if device == "cpu" else 0
    return 4 * (weights.n_base + weights.n_trained) + file


def working_bytes(scene: Scene, passes: Sequence[Pass]) -> int:
    """What a run's steps hold at most besides weights and adapter: gradients, AdamW's states, activations, logits."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(scene.base.path, local_files_only=True)
    n_layers = int(config.get_text_config().num_hidden_layers)
    sizes = [usual(passes), largest(passes)]
    depths = DEPTHS if n_layers > DEPTHS[1] else (n_layers,)
    found = [_traced(scene, sizes, depth) for depth in depths]
    if len(found) == 1:
        return found[0]
    a_layer = (found[1] - found[0]) / (DEPTHS[1] - DEPTHS[0])
    return round(found[0] + a_layer * (n_layers - DEPTHS[0]))


def _traced(scene: Scene, sizes: Sequence[Pass], n_layers: int) -> int:
    from transformers import AutoConfig

    from llmops.train.memory.trace import Subject, trace_passes
    from llmops.train.model import DTYPES, attention_of, planned_config

    recipe = scene.recipe
    subject = Subject(
        config=AutoConfig.from_pretrained(scene.base.path, local_files_only=True),
        lora=planned_config(recipe, scene.parent),
        dtype=DTYPES[recipe.precision],
        attention=attention_of(scene.base, recipe, scene.device),
        checkpointing=recipe.gradient_checkpointing,
        quantized=recipe.quantization != "none",
        mask=mask_of(scene),
        scored=not isinstance(recipe.method, Reward),
        device=scene.device,
    )
    trace = trace_passes(subject, n_layers, sizes)
    return trace.peak
