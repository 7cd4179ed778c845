"""What `llmops finetune --check` finds out about a recipe: every finding, and figures of rows, memory and disk."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from llmops.schema import JsonDict, Progress, Record
from llmops.settings import Workspace
from llmops.train.check.data import pass_findings, row_findings
from llmops.train.check.disk import DiskNeed, disk_findings, disk_need
from llmops.train.check.inquiry import Inquiry
from llmops.train.check.machine import device_findings
from llmops.train.check.memory import MemoryNeed, memory_findings, memory_need
from llmops.train.memory.estimate import shares_prompts
from llmops.train.memory.passes import passes_of
from llmops.train.memory.weights import weigh
from llmops.train.plan import Desk, Plan, inquire
from llmops.train.recipe import Overrides
from llmops.train.rows import token_lengths


@dataclass(frozen=True)
class CheckReport(Record):
    """The findings about a recipe; figures that could not be found out are empty."""

    schema: ClassVar[str] = "llmops.preflight/1"

    recipe: str
    verdict: str  # ready, or refused
    findings: tuple[dict[str, str], ...]
    rows: dict[str, int]
    memory: dict[str, Any]
    disk: dict[str, int]

    @property
    def is_ready(self) -> bool:
        """Whether nothing stands in the run's way."""
        return self.verdict == "ready"

    def lines(self) -> list[str]:
        """The report as text: a line a finding, the verdict last."""
        width = max(len(finding["check"]) for finding in self.findings)
        said = [
            f"{f['severity']:<6}  {f['check']:<{width}}  {f['what']}"
            + (f"; {f['advice']}" if f["advice"] else "")
            for f in self.findings
        ]
        n_bad = sum(finding["severity"] == "refuse" for finding in self.findings)
        last = "ready" if self.is_ready else f"refused for {n_bad} reason{'s' if n_bad != 1 else ''}"
        return [*said, f"{self.recipe}: {last}"]


def check_recipe(
    recipe_path: Path, workspace: Workspace, progress: Progress, overrides: Overrides = ()
) -> CheckReport:
    """Look at everything about a recipe that needs no weights.

    Args:
        recipe_path: the YAML file.
        workspace: where data and state are.
        progress: told what is being looked at.
        overrides: settings that replace the file's.

    Returns:
        Every finding; what a wrong recipe, base or row hides is left out.
    """
    inquiry = Inquiry()
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(recipe_path, workspace, Path(folder), progress, overrides, inquiry, only_looks=True)
        found = inquire(desk)
        rows, memory, disk = dict[str, int](), dict[str, Any](), dict[str, int]()
        if found is not None:
            rows = dict(found.examples.n_rows)
            need, room = _machine(found, desk)
            memory, disk = _memory_figures(need), dataclasses.asdict(room) | {"run_bytes": room.run_bytes}
    plain: tuple[dict[str, str], ...] = tuple(dataclasses.asdict(finding) for finding in inquiry.findings)
    verdict = "refused" if inquiry.errors else "ready"
    return CheckReport(str(recipe_path), verdict, plain, rows, memory, disk)


def _machine(found: Plan, desk: Desk) -> tuple[MemoryNeed, DiskNeed]:
    """Note what rows, device, memory and disk come to."""
    recipe, rows, note = found.recipe, found.examples.train, desk.inquiry.note
    note(row_findings(found.examples, recipe))
    passes = passes_of(recipe, rows, shares_prompts(found.scene))
    note(pass_findings(passes, recipe, token_lengths(rows)))
    note(device_findings(recipe, found.device))
    desk.progress(0, 0, "estimating memory")
    need = memory_need(found.scene)
    note(memory_findings(found.scene, need))
    weights = weigh(recipe, found.base, found.scene.parent)
    room = disk_need(recipe, found.n_parameters, weights.file_bytes, desk.workspace.state)
    note(disk_findings(room))
    return need, room


def _memory_figures(need: MemoryNeed) -> JsonDict:
    found = need.estimate
    return {
        "device": found.device,
        "verdict": need.verdict,
        "total_bytes": found.total_bytes,
        "range_bytes": list(need.range_bytes),
        "available_bytes": need.available_bytes,
        "stage": found.stage,
        "stages": found.phases,
        "parts": found.parts,
        "largest_pass": dataclasses.asdict(found.largest),
    }
