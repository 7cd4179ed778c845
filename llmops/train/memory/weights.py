"""The weights of a run: how many there are, in what they are held, and how large the file is they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmops.registry.bases import Base
from llmops.train.recipe import Recipe

NF4_BLOCK, NF4_SECOND_BLOCK = 64, 256
"""bitsandbytes: one scale for 64 values, itself in 8 bits with one fp32 for 256 of them (double quantisation)."""
BYTES_EACH = {"nf4": 0.5 + 1 / NF4_BLOCK + 4 / (NF4_BLOCK * NF4_SECOND_BLOCK), "int8": 1.0}
"""Of a weight held in few bits."""


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters, and bytes as they are held while training and as they lie on the disk."""

    n_base: int
    n_trained: int
    base_bytes: int
    file_bytes: int


def weigh(recipe: Recipe, base: Base, parent: Path | None) -> Weights:
    """The weights of a recipe's base and adapter, from their shapes alone.

    Args:
        recipe: precision, quantisation and the adapter's shape.
        base: the base model.
        parent: folder of the adapter that is continued.
    """
    import torch

    from llmops.train.model import DTYPES, adapter_on_meta, planned_config

    each = BYTES_EACH.get(recipe.quantization)
    model = adapter_on_meta(base, planned_config(recipe, parent))
    packed = set[int]()
    if each is not None:
        packed = {
            id(module.weight)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and not _stays_whole(name)
        }
    wide = DTYPES[recipe.precision].itemsize
    n_base = n_trained = 0
    held = 0.0
    for parameter in {id(p): p for p in model.parameters()}.values():
        if parameter.requires_grad:
            n_trained += parameter.numel()
        else:
            n_base += parameter.numel()
            held += parameter.numel() * (each if each is not None and id(parameter) in packed else wide)
    files = sum(file.stat().st_size for file in base.path.glob("*.safetensors"))
    return Weights(n_base, n_trained, round(held), files or n_base * wide)


def _stays_whole(name: str) -> bool:
    """Whether a linear layer is none of those that quantisation packs: the adapter's own, and output layers."""
    return "lora_" in name or name.rpartition(".")[2] in ("lm_head", "score") or ".score." in name
