"""When a run is saved, and when it ends before its last step."""

from __future__ import annotations

from pydantic import Field

from llmops.train.recipe.settings import Settings


class Checkpoints(Settings):
    """How often all that training needs to go on is written to the run's folder."""

    every_n_steps: int | None = Field(None, ge=1)
    """Steps between two checkpoints; unset: one about every ten minutes of training."""
    keep: int = Field(2, ge=1)
    """Checkpoints that are kept; older ones are removed. All go when the run has finished."""


class EarlyStopping(Settings):
    """Ends training when the held-out loss falls no more; the adapter gets the weights that had the lowest."""

    every_n_steps: int = Field(ge=1)
    """Steps between two looks at the held-out loss; the last step is looked at too."""
    patience: int = Field(3, ge=1)
    """Looks in a row without a lower loss after which training ends."""
    min_change: float = Field(0.0, ge=0)
    """How much lower a loss has to be to count as lower, in the loss's own unit (nats a label for sft)."""
