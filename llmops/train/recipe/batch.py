"""How rows come together in one step."""

from __future__ import annotations

from pydantic import Field

from llmops.train.recipe.settings import Settings


class Batch(Settings):
    """How rows come together in one step. A preference is one row and is read as two sequences."""

    per_device: int = Field(8, ge=1)
    """Rows in one forward and backward pass; with `packing`, packed rows."""
    accumulation: int = Field(1, ge=1)
    """Passes whose gradients make one step."""
    group_by_length: bool = True
    """Put rows of like length into one pass, so that less is spent on padding; the order of passes stays random."""
    packing: bool = False
    """Put several rows of the data into one row of `pack_tokens`, each its own document: none sees another (sft only).
    Worth it on a GPU, where rows are long; on a CPU grouping by length costs less."""
    pack_tokens: int | None = Field(None, ge=1)
    """Length of a packed row; unset: max_tokens. Documents are never cut, so it is at least max_tokens."""

    @property
    def n_rows(self) -> int:
        """Rows a step learns from."""
        return self.per_device * self.accumulation
