"""Which process of a run this is: files, ledger and tracker are the main one's, and all must decide alike.

One process is its own main one. Several are told apart by what torchrun sets in the environment.
"""

from __future__ import annotations

import os


def is_main() -> bool:
    """Whether this process writes for the run."""
    return int(os.environ.get("RANK", "0")) == 0


def n_processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def any_process(flag: bool, device: str) -> bool:
    """Whether `flag` is true in any process of the run; every process gets the same answer, so all must ask.

    Args:
        flag: what this process says.
        device: where its tensors are; processes talk over what belongs to it.
    """
    if n_processes() == 1:
        return flag
    import torch
    import torch.distributed as dist

    said = torch.tensor([int(flag)], device=device)
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return bool(said.item())


def wait_for_all() -> None:
    """Go on when every process of the run has come here."""
    if n_processes() > 1:
        import torch.distributed as dist

        dist.barrier()
