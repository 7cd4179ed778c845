"""Room on the disk for what a run writes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from llmops.train.recipe import Recipe
from llmops.train.sanity import Finding

ADAMW_STATES = 2  # running means of the gradient and of its square, fp32 like the weights they belong to


@dataclass(frozen=True)
class DiskNeed:
    """Bytes a run writes, and what would come after it."""

    adapter_bytes: int  # in the run's folder, until it is in the store
    store_bytes: int
    checkpoints_bytes: int
    merged_bytes: int  # of the merged copy, if it is made
    free_bytes: int

    @property
    def run_bytes(self) -> int:
        """All of the run, at its peak."""
        return self.adapter_bytes + self.store_bytes + self.checkpoints_bytes


def disk_need(recipe: Recipe, n_parameters: int, base_bytes: int, folder: Path) -> DiskNeed:
    """What a run of this recipe writes under `folder`.

    Args:
        recipe: says how many checkpoints are kept.
        n_parameters: of the adapter.
        base_bytes: of the base model's weights, which a merged copy has the size of.
        folder: where the workspace's state is.
    """
    adapter = 4 * n_parameters
    # One more than are kept: a new one is whole before the oldest goes.
    checkpoints = (recipe.checkpoint.keep + 1) * adapter * (1 + ADAMW_STATES)
    best = adapter if recipe.early_stopping is not None else 0
    return DiskNeed(adapter, adapter, checkpoints + best, base_bytes, shutil.disk_usage(folder).free)


def disk_findings(need: DiskNeed) -> list[Finding]:
    """Whether it fits, and what the merged copy would need besides."""
    parts = (
        f"adapter {size(need.adapter_bytes)}, store {size(need.store_bytes)}, checkpoints "
        f"{size(need.checkpoints_bytes)}"
    )
    what = f"{size(need.run_bytes)} of {size(need.free_bytes)} free: {parts}"
    if need.run_bytes > need.free_bytes:
        return [
            Finding(
                "disk", "refuse", f"does not fit: {what}", "free space, or lower checkpoint.keep or lora.r"
            )
        ]
    found = [Finding("disk", "ok", f"fits: {what}")]
    if need.run_bytes + need.merged_bytes > need.free_bytes:
        merged = f"a merged copy would not fit: it needs {size(need.merged_bytes)} more"
        found.append(Finding("disk", "warn", merged, "free space before `llmops merge`"))
    return found


def size(n_bytes: float) -> str:
    """Bytes in words, decimal: 1.5 GB.

    >>> size(1_530_000_000), size(12_000_000), size(3_000)
    ('1.5 GB', '12 MB', '0 MB')
    """
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
