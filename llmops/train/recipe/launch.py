"""In how many processes a recipe trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llmops.train.recipe.settings import Settings


class Launch(Settings):
    """Processes that train one adapter together, one a device, over one machine or several."""

    processes: int = Field(1, ge=1, le=4096)
    """All processes, over all machines. On one machine `llmops finetune` starts them; on several, torchrun or Ray does.
    A step learns from `batch.per_device * batch.accumulation * processes` rows."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each process holds the whole base. fsdp: the base is sharded over the processes (FSDP2; CUDA alone)."""
    runner: Literal["torchrun", "ray"] = "torchrun"
    """What starts the processes: torch's elastic launcher, or Ray Train (the cluster of RAY_ADDRESS, else here)."""

    @model_validator(mode="after")
    def _together(self) -> Launch:
        if self.strategy == "fsdp" and self.processes == 1:
            raise ValueError(
                "fsdp shards over processes; set launch.processes to 2 or more, or strategy: ddp"
            )
        return self
