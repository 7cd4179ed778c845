"""Whether a run fits into the memory of its device, and what to change if not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmops.train.check.disk import size
from llmops.train.memory.advice import changes
from llmops.train.memory.constants import LOWER, UPPER
from llmops.train.memory.estimate import Estimate, Scene, estimate
from llmops.train.sanity import Finding

CGROUP = Path("/sys/fs/cgroup")
AMPLE = 0.5
"""A run whose upper bound is less than this part of what is free needs no estimate before it starts."""


@dataclass(frozen=True)
class MemoryNeed:
    """The estimate of a run, and what its device has for it."""

    estimate: Estimate
    available_bytes: int

    @property
    def verdict(self) -> str:
        """`fits` if the upper end does, `does not fit` if not even the lower end does, else `may not fit`."""
        low, high = self.range_bytes
        if high <= self.available_bytes:
            return "fits"
        return "may not fit" if low <= self.available_bytes else "does not fit"

    @property
    def range_bytes(self) -> tuple[int, int]:
        """Between what the run needs, as far as it can be told."""
        total = self.estimate.total_bytes
        return round(LOWER * total), round(UPPER * total)


def available_bytes(device: str) -> int:
    """What a run in this process could hold: on a CPU what is free, within the control group's limit, and its own."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    own = psutil.Process().memory_info().rss
    return min([int(psutil.virtual_memory().available), *_group_rest()]) + int(own)


def _group_rest() -> list[int]:
    """What the control group still allows, where there is a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return []
    return [] if limit == "max" else [max(0, int(limit) - used)]


def memory_need(scene: Scene) -> MemoryNeed:
    """The estimate of a run beside what its device has."""
    return MemoryNeed(estimate(scene), _share(scene))


def _share(scene: Scene) -> int:
    """What one process has: those on a CPU share its memory, those on GPUs have one each."""
    n = scene.recipe.launch.processes if scene.device == "cpu" else 1
    return available_bytes(scene.device) // n


def memory_findings(scene: Scene, need: MemoryNeed) -> list[Finding]:
    """Whether it fits; if not surely, what each change of settings would save."""
    found = need.estimate
    parts = ", ".join(f"{name} {size(n)}" for name, n in found.parts.items())
    other = (
        ""
        if found.stage == "train"
        else f" (while it {_STAGES[found.stage]}; training {size(found.phases['train'])})"
    )
    low, high = need.range_bytes
    about = f"about {size(found.total_bytes)} ({size(low)} to {size(high)})"
    what = f"{need.verdict}: {about}{other} of {size(need.available_bytes)} on {found.device}"
    if need.verdict == "fits":
        return [Finding("memory", "ok", f"{what}: {parts}")]
    refused = need.verdict == "does not fit" and scene.recipe.memory == "refuse"
    return [
        Finding("memory", "refuse" if refused else "warn", f"{what}: {parts}", _advice(scene, need, refused))
    ]


_STAGES = {"load": "loads its weights", "probe": "probes the adapter in fp32"}


def _advice(scene: Scene, need: MemoryNeed, refused: bool) -> str:
    total, wanted = need.estimate.total_bytes, round(need.available_bytes / UPPER)
    said = [
        f"{change.words} saves {size(total - change.total_bytes)}"
        + (" and fits" if change.total_bytes <= wanted else "")
        for change in changes(scene, need.estimate, wanted)
    ]
    said = said or ["take a smaller base model, or a device with more memory"]
    return "; ".join([*said, *(["memory: warn goes on all the same"] if refused else [])])


def is_ample(scene: Scene) -> bool:
    """Whether a generous bound of what the run needs is far below what is free, so that no estimate is wanted."""
    from llmops.train.memory.bound import upper_bound

    return upper_bound(scene) < AMPLE * _share(scene)
