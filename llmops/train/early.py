"""Early stopping: the lowest held-out loss, the weights that had it, and how long it has not been beaten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from llmops.schema import JsonDict
from llmops.train.recipe.control import EarlyStopping


class Lowest:
    """Looks at held-out losses and keeps the trained weights of the lowest, on the CPU."""

    def __init__(self, settings: EarlyStopping) -> None:
        """Nothing has been looked at yet."""
        self.settings = settings
        self.loss: float | None = None
        self.step = 0
        self.n_worse = 0
        self.weights: dict[str, torch.Tensor] = {}

    def due(self, step: int, last: bool) -> bool:
        """Whether the loss behind `step` is looked at; `last` says that no step follows."""
        return last or step % self.settings.every_n_steps == 0

    def look(self, step: int, loss: float, model: Any) -> None:
        """Take the loss of the model as it is behind `step`."""
        if self.loss is None or loss < self.loss - self.settings.min_change:
            self.loss, self.step, self.n_worse = loss, step, 0
            self.weights = {name: p.detach().cpu().clone() for name, p in _trained(model).items()}
        else:
            self.n_worse += 1

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` looks have found no lower loss."""
        return self.n_worse >= self.settings.patience

    def put_back(self, model: Any) -> None:
        """Give the model the weights that had the lowest loss."""
        with torch.no_grad():
            for name, parameter in _trained(model).items():
                parameter.copy_(self.weights[name])

    def state(self) -> JsonDict:
        """All but the weights, as JSON."""
        return {"loss": self.loss, "step": self.step, "n_worse": self.n_worse}

    def restore(self, state: JsonDict, weights: Mapping[str, torch.Tensor]) -> None:
        """Be as when `state` and the weights were kept."""
        self.loss, self.step, self.n_worse = state["loss"], state["step"], state["n_worse"]
        self.weights = dict(weights)


def _trained(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
