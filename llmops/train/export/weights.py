"""The weights of base and adapter as one model, a tensor at a time: no second copy of the model is ever in memory.

The arithmetic is PEFT's own, layer by layer and in fp32: LoRA, rsLoRA, DoRA and patterns of rank or scale alike. The
layers are built without weights; a base tensor is read when it is asked for and let go of again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open

from llmops.errors import BadRequest, InvalidEvidence
from llmops.registry.bases import Base
from llmops.train.model import adapter_on_meta, load_adapter_weights, read_lora_config

_PEFT_PREFIX = "base_model.model."


class MergedWeights:
    """Base and adapter as the tensors of one model, by the names the base's files have."""

    def __init__(self, base: Base, adapter: Path) -> None:
        """Read the adapter and the names of the base's tensors; the base's weights stay on disk.

        Args:
            base: the base model; its folder holds safetensors.
            adapter: a PEFT folder that belongs to it.

        Raises:
            BadRequest: the base has no safetensors, holds packed weights, or names its layers otherwise than PEFT.
            InvalidEvidence: the adapter's tensors are not those its configuration asks for.
        """
        self._base = base
        self._files = _files_by_tensor(base)
        self._handles: dict[Path, Any] = {}
        self._layers = _adapter_layers(base, adapter)
        lost = sorted(self._layers.keys() - self._files.keys())
        if lost:
            raise BadRequest(
                f"base model {base.ref}: its files have no tensor {lost[0]} ({len(lost)} such), which "
                "the adapter changes; save the base again with transformers, and train on that"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors, in the order of the base's files."""
        return tuple(self._files)

    @property
    def n_changed(self) -> int:
        """Tensors that the adapter changes."""
        return len(self._layers)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from its file's header."""
        return tuple(self._open(name).get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the merged model: fp32 if it holds real numbers, else as it is stored.

        Raises:
            InvalidEvidence: merging makes a number that is not finite.
        """
        stored: torch.Tensor = self._open(name).get_tensor(name)
        if not stored.is_floating_point():
            return stored
        weight = stored.float()
        layer = self._layers.get(name)
        return weight if layer is None else _merge(layer, weight, name)

    def _open(self, name: str) -> Any:
        path = self._files[name]
        if path not in self._handles:
            self._handles[path] = safe_open(str(path), framework="pt")
        return self._handles[path]


def _files_by_tensor(base: Base) -> dict[str, Path]:
    """File of each tensor, in the order of files and of the tensors in them."""
    found: dict[str, Path] = {}
    for path in sorted(base.path.glob("*.safetensors")):
        try:
            with safe_open(str(path), framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            raise InvalidEvidence(f"{path}: cannot be read ({error}); fetch the base again") from error
    if not found:
        raise BadRequest(
            f"base model {base.ref}: {base.path} has no *.safetensors; save it with transformers' save_pretrained"
        )
    return found


def _adapter_layers(base: Base, adapter: Path) -> dict[str, LoraLayer]:
    """PEFT's layers with the adapter's weights and none of the base, by the name of the base tensor they change."""
    config = read_lora_config(adapter)
    config.init_lora_weights = False  # what they begin with does not matter: weights come from the file
    model = adapter_on_meta(base, config)
    layers = {
        f"{name.removeprefix(_PEFT_PREFIX)}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    for layer in layers.values():
        for part in (*layer.adapter_layer_names, "lora_magnitude_vector"):
            getattr(layer, part).to_empty(device="cpu").float()
    load_adapter_weights(model, adapter)
    return layers


def _merge(layer: LoraLayer, weight: torch.Tensor, name: str) -> torch.Tensor:
    inner = layer.get_base_layer()
    empty = inner.weight
    inner.weight = torch.nn.Parameter(weight, requires_grad=False)
    try:
        with torch.no_grad():
            layer.merge(safe_merge=True)
        merged: torch.Tensor = inner.weight.data
    except ValueError as error:
        raise InvalidEvidence(f"merging {name}: {error}; train the adapter again") from error
    finally:
        inner.weight = empty
        layer.merged_adapters.clear()
    return merged
