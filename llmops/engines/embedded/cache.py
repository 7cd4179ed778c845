"""Keys and values of the rows being generated: one left-padded block that rows join and leave between steps.

Row b holds `lengths[b]` tokens in the last columns of `width`; the columns before are padding that the mask
hides. Shapes: keys and values are [B, H, width, D] per layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

SPARE_TOKENS = 64
"""Columns allocated ahead, so that a decode step writes one column instead of copying the whole block."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A DynamicLayer whose keys and values are views into buffers with spare columns on the right."""

    keys: torch.Tensor
    values: torch.Tensor
    is_initialized: bool

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self._key_buffer: torch.Tensor | None = None
        self._value_buffer: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, H, T, D] states and return all of them; the extra arguments are the base class's."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._key_buffer is None or end > self._key_buffer.shape[-2]:
            self._key_buffer = _grown(self.keys if start else None, key_states, end + SPARE_TOKENS)
            self._value_buffer = _grown(self.values if start else None, value_states, end + SPARE_TOKENS)
        assert self._value_buffer is not None
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        self.keys = self._key_buffer[:, :, :end]
        self.values = self._value_buffer[:, :, :end]
        return self.keys, self.values

    def replace(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Hold exactly these tensors from now on."""
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = keys, values
        self._key_buffer = self._value_buffer = None
        self.is_initialized = True


def _grown(old: torch.Tensor | None, like: torch.Tensor, capacity: int) -> torch.Tensor:
    """Return a [B, H, capacity, D] buffer that begins with `old`."""
    batch, heads, _, dim = like.shape
    buffer = like.new_empty(batch, heads, capacity, dim)
    if old is not None:
        buffer[:, :, : old.shape[-2]] = old
    return buffer


@dataclass
class KVBlock:
    """The cache of a batch with the number of real tokens of each row."""

    lengths: list[int]
    cache: Cache = field(default_factory=lambda: Cache(layer_class_to_replicate=RoomyLayer))

    @property
    def width(self) -> int:
        """Columns held, padding included."""
        return int(self.cache.get_seq_length()) if self.cache.layers else 0

    def select(self, rows: list[int]) -> None:
        """Keep only `rows`, in this order, and drop the padding that all of them share."""
        self.lengths = [self.lengths[row] for row in rows]
        if not rows:
            self.cache = Cache(layer_class_to_replicate=RoomyLayer)
            return
        drop = self.width - max(self.lengths)
        index = torch.tensor(rows, device=self.cache.layers[0].keys.device)
        for layer in self.cache.layers:
            layer.replace(
                layer.keys[:, :, drop:].index_select(0, index),
                layer.values[:, :, drop:].index_select(0, index),
            )

    def join(self, other: KVBlock) -> None:
        """Append the rows of `other`, padding the narrower block on the left."""
        if not self.lengths:
            self.lengths, self.cache = other.lengths, other.cache
            return
        width = max(self.width, other.width)
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.replace(
                torch.cat([_padded(mine.keys, width), _padded(theirs.keys, width)]),
                torch.cat([_padded(mine.values, width), _padded(theirs.values, width)]),
            )
        self.lengths = self.lengths + other.lengths


def _padded(states: torch.Tensor, width: int) -> torch.Tensor:
    """Return [B, H, T, D] states widened on the left with zeros (a NaN would spread even where masked)."""
    missing = width - states.shape[-2]
    return torch.nn.functional.pad(states, (0, 0, missing, 0)) if missing else states
