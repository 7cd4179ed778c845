"""Keys and values of the rows being generated: one left-padded block that rows join and leave between steps.

Row b holds `lengths[b]` tokens in the last columns of `width`; the columns before are padding that the mask
hides. Shapes: keys and values are [B, H, width, D] per layer. They are views into buffers with columns to spare on the
right, so that a step writes one column; a row that leaves gives its place to the last one, and one that joins is
written behind it, so that neither moves the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

SPARE_TOKENS = 64
"""Columns allocated ahead."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A DynamicLayer whose keys and values are the first rows of two buffers, from `_start` to `_end`."""

    keys: torch.Tensor
    values: torch.Tensor
    is_initialized: bool

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self._buffers: tuple[torch.Tensor, ...] = ()
        self._n, self._start, self._end = 0, 0, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, H, T, D] states and return all of them; the extra arguments are the base class's."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._n = len(key_states)
        n_new = key_states.shape[-2]
        if not self._buffers or self._end + n_new > self._buffers[0].shape[-2]:
            width = self._end - self._start
            self._lay_out((key_states, value_states), (self._n, width + n_new + SPARE_TOKENS), width)
        start, self._end = self._end, self._end + n_new
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._n, :, start : self._end] = states
        self._show()
        return self.keys, self.values

    def keep(self, filled: tuple[list[int], list[int]], n: int, width: int) -> None:
        """Keep the first `n` rows and the last `width` columns, after rows `filled[1]` moved to places `filled[0]`."""
        places, rows = filled
        for buffer in self._buffers:
            if places:
                buffer[places, :, self._start : self._end] = buffer[rows, :, self._start : self._end]
        self._n, self._start = n, self._end - width
        self._show()

    def join(self, other: RoomyLayer) -> None:
        """Append the rows of `other`; what is new on the left is zero (a NaN would spread even where masked)."""
        theirs = other.keys.shape[-2]
        width, n = max(self._end - self._start, theirs), self._n + other._n
        if n > len(self._buffers[0]) or self._end < width:
            self._lay_out((other.keys, other.values), (n, width + SPARE_TOKENS), width)
        start = self._end - width
        for buffer, states in zip(self._buffers, (other.keys, other.values), strict=True):
            buffer[: self._n, :, start : self._start] = 0
            buffer[self._n : n, :, start : self._end - theirs] = 0
            buffer[self._n : n, :, self._end - theirs : self._end] = states
        self._n, self._start = n, start
        self._show()

    def _lay_out(self, like: tuple[torch.Tensor, torch.Tensor], size: tuple[int, int], end: int) -> None:
        """Move to buffers of `size` (rows, columns), where what is held ends at column `end`."""
        held = self._end - self._start
        old, new = self._buffers, []
        for i, states in enumerate(like):
            _, heads, _, dim = states.shape
            new.append(states.new_empty(size[0], heads, size[1], dim))
            if held:
                new[i][: self._n, :, end - held : end] = old[i][: self._n, :, self._start : self._end]
        self._buffers = tuple(new)
        self._start, self._end = end - held, end

    def _show(self) -> None:
        self.keys, self.values = (buffer[: self._n, :, self._start : self._end] for buffer in self._buffers)


@dataclass
class KVBlock:
    """The cache of a batch with the number of real tokens of each row."""

    lengths: list[int]
    cache: Cache = field(default_factory=lambda: Cache(layer_class_to_replicate=RoomyLayer))

    @property
    def width(self) -> int:
        """Columns held, padding included."""
        return int(self.cache.get_seq_length()) if self.cache.layers else 0

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def keep(self, rows: list[int]) -> list[int]:
        """Keep only these rows and drop the padding that all of them share; returns them in their new order."""
        kept, n = set(rows), len(rows)
        order = list(range(len(self.lengths)))
        places = [i for i in range(n) if i not in kept]
        movers = [i for i in range(n, len(order)) if i in kept]
        for place, mover in zip(places, movers, strict=True):
            order[place] = mover
        self.lengths = [self.lengths[row] for row in order[:n]]
        if not rows:
            self.cache = Cache(layer_class_to_replicate=RoomyLayer)
        for layer in self.cache.layers:
            layer.keep((places, movers), n, max(self.lengths))
        return order[:n]

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def join(self, other: KVBlock) -> None:
        """Append the rows of `other`."""
        if not self.lengths:
            self.lengths, self.cache = other.lengths, other.cache
            return
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.join(theirs)
        self.lengths = self.lengths + other.lengths
