"""Processes that train together: which one this is, and what the first tells the others. Reads the environment.

torchrun, Ray Train and `llmops finetune` itself all set RANK, LOCAL_RANK and WORLD_SIZE; without them there is one
process. The first process (rank 0) alone reads data, writes files and speaks; the others train what it tells them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, TypeVar

from llmops.errors import ConfigError, CouldNotRun
from llmops.train.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """This process among those that train together: its number, its number on this machine, and how many there are."""

    rank: int = 0
    local: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process reads, writes and speaks for all."""
        return self.rank == 0


def place() -> Place:
    """This process's place, as its launcher says.

    Raises:
        ConfigError: the launcher's variables are not numbers.
    """
    found = [os.environ.get(name, default) for name, default in _VARIABLES.items()]
    try:
        return Place(*(int(value) for value in found))
    except ValueError:
        shown = ", ".join(f"{name}={value}" for name, value in zip(_VARIABLES, found, strict=True))
        raise ConfigError(f"environment: {shown}: not numbers; start the processes with torchrun") from None


_VARIABLES = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


def started_by_launcher() -> bool:
    """Whether a launcher started this process as one of several (or as one alone)."""
    return "WORLD_SIZE" in os.environ


def require_processes(recipe: Recipe, where: object) -> None:
    """Refuse to train in another number of processes than the recipe says, which would make another batch.

    Raises:
        ConfigError: names both numbers.
    """
    wanted, here = recipe.launch.processes, place().world
    if started_by_launcher() and wanted != here:
        raise ConfigError(
            f"{where}: launch.processes: {wanted}, but the launcher started {here}; set it to {here} or start {wanted}"
        )


def require_strategy(recipe: Recipe, device: str, where: object) -> None:
    """Refuse a strategy that this platform would silently not carry out.

    Raises:
        ConfigError: says what would happen, and what to set.
    """
    if recipe.launch.strategy != "fsdp":
        return
    if device != "cuda":
        raise ConfigError(
            f"{where}: launch.strategy: fsdp on {device}: accelerate would train without sharding anything; "
            "set ddp, or use CUDA devices"
        )
    if recipe.quantization != "none":
        raise ConfigError(
            f"{where}: launch.strategy: fsdp with quantization: {recipe.quantization}: packed weights are not sharded, "
            "so nothing would be saved; set quantization: none, or strategy: ddp"
        )


def join(device: str) -> None:
    """Meet the other processes and take this one's own device; nothing to do when it is alone.

    Raises:
        CouldNotRun: they cannot be met, or this machine has fewer devices than processes.
    """
    import torch

    here = place()
    if device == "cuda" and started_by_launcher():
        if here.local >= torch.cuda.device_count():
            raise CouldNotRun(
                f"process {here.rank}: needs CUDA device {here.local}, this machine has {torch.cuda.device_count()}; "
                "start one process a device"
            )
        torch.cuda.set_device(here.local)
    if here.world == 1 or torch.distributed.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        torch.distributed.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise CouldNotRun(
            f"process {here.rank} of {here.world}: cannot meet the others ({error}); check MASTER_ADDR and MASTER_PORT"
        ) from error


def from_first(value: T | None) -> T:
    """What the first process gives, in every process; `value` counts in the first alone. Call after `join`."""
    import torch

    if place().world == 1:
        return value  # type: ignore[return-value]
    box: list[Any] = [value]
    torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    given: T = box[0]
    return given


def wait_for_all() -> None:
    """Go on when every process has come here."""
    import torch

    if place().world > 1:
        torch.distributed.barrier()


def any_of_all(value: bool) -> bool:
    """Whether `value` holds in any process; every process must ask at the same point."""
    import torch

    if place().world == 1:
        return value
    flag = torch.tensor([int(value)])
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
