"""Base models sharded over processes (FSDP2): proof that they are, and the adapter gathered from its shards.

accelerate leaves a model whole, without a word, where it cannot shard (on a CPU, for one): what was asked for is
checked.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from llmops.errors import TrainingFailed

SETTINGS = {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}
"""transformers' settings for `launch.strategy: fsdp`; layers are wrapped as the model's class says."""


def sharded_frac(model: torch.nn.Module) -> float:
    """Fraction of a model's parameter values that lie in shards (DTensor), in [0, 1]."""
    from torch.distributed.tensor import DTensor

    sizes = [(int(p.numel()), isinstance(p, DTensor)) for p in model.parameters()]
    return sum(n for n, sharded in sizes if sharded) / sum(n for n, _ in sizes)


def require_sharded(model: torch.nn.Module) -> None:
    """Refuse a model that was to be sharded and is not, or only in part.

    Raises:
        TrainingFailed: says how much of it is.
    """
    found = sharded_frac(model)
    if found < 1:
        raise TrainingFailed(
            f"launch.strategy: fsdp: {found:.0%} of the parameters are sharded, not all; set strategy: ddp, or report "
            "this model's class"
        )


class RequireSharded(TrainerCallback):  # type: ignore[misc]
    """Looks at the model once the trainer has wrapped it, before the first step."""

    def on_train_begin(self, _args: Any, _state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        """Called by the trainer; raises as `require_sharded` does."""
        require_sharded(model)


def whole_adapter(model: Any) -> dict[str, torch.Tensor]:
    """The trained parameters of a sharded model by name, gathered on the CPU of the first process; empty elsewhere.

    Every process must call it.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    found: dict[str, torch.Tensor] = get_model_state_dict(model, options=options)
    return found
