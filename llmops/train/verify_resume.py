"""The proof that a recipe's runs resume exactly: the same steps unbroken, and broken by signal 9 and gone on with.

Every leg is a process of its own (this module, run by its path), so that nothing can pass from one to the next but what
lies in a checkpoint. Nothing is registered, and the workspace's runs are left alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llmops.checkpoints import newest_whole
from llmops.errors import ConfigError, CouldNotRun
from llmops.manifest import sha256_file
from llmops.registry.adapters import WEIGHTS_FILE
from llmops.schema import Progress, no_progress
from llmops.settings import Workspace, find_workspace
from llmops.train.recipe import load_recipe
from llmops.train.recipe.control import Checkpoints

Leg = Literal["unbroken", "broken", "resumed"]


@dataclass(frozen=True)
class Order:
    """What one leg is told: the recipe, the workspace, how many steps, its folder, and at which step it dies."""

    leg: Leg
    recipe: str
    workspace: str
    folder: str
    n_steps: int

    @property
    def save_every(self) -> int:
        """Steps between two checkpoints: one lies well before the death."""
        return max(1, self.n_steps // 3)

    @property
    def dies_at(self) -> int:
        """The step behind which the broken leg is killed: the one before its second checkpoint, if there is room."""
        return max(self.save_every, 2 * self.save_every - 1) if self.n_steps > 2 else self.n_steps


@dataclass(frozen=True)
class Verdict:
    """Whether both adapters are the same to the last bit, and what differs first if they are not."""

    n_steps: int
    killed_at: int
    resumed_from: int
    unbroken: str  # sha256 of the weights' file
    resumed: str
    differs: str | None

    @property
    def exact(self) -> bool:
        """Whether they are."""
        return self.unbroken == self.resumed


def verify_resume(
    recipe_path: Path, workspace: Workspace, n_steps: int, progress: Progress = no_progress
) -> Verdict:
    """Train `n_steps` steps of a recipe twice, once without a break, once killed and resumed, and compare.

    Args:
        recipe_path: the recipe; its own number of steps and checkpoints is left aside.
        workspace: where its data is; nothing is registered there.
        n_steps: at least 3, so that a checkpoint lies before the break and a step behind it.
        progress: told which leg is under way.

    Raises:
        ConfigError: the recipe cannot be used.
        CouldNotRun: a leg ended otherwise than it should; its last words are in the message.
    """
    recipe = load_recipe(recipe_path)
    if recipe.launch.processes != 1:
        raise ConfigError(
            f"{recipe_path}: launch.processes: {recipe.launch.processes}: only one process is verified; set it to 1"
        )
    with tempfile.TemporaryDirectory(prefix="llmops-verify-resume-") as scratch:
        folders: dict[Leg, str] = {"unbroken": "one", "broken": "two", "resumed": "two"}
        orders = [
            Order(leg, str(recipe_path.resolve()), str(workspace.root), f"{scratch}/{folder}", n_steps)
            for leg, folder in folders.items()
        ]
        resumed_from = 0
        for i, order in enumerate(orders):
            progress(i, len(orders), f"{order.leg} run of {n_steps} steps")
            _run(order)
            if order.leg == "broken":
                resumed_from = _newest_step(Path(order.folder))
        one, two = Path(scratch, "one"), Path(scratch, "two")
        return Verdict(
            n_steps=n_steps,
            killed_at=orders[1].dies_at,
            resumed_from=resumed_from,
            unbroken=sha256_file(one / "adapter" / WEIGHTS_FILE),
            resumed=sha256_file(two / "adapter" / WEIGHTS_FILE),
            differs=first_difference(one / "adapter" / WEIGHTS_FILE, two / "adapter" / WEIGHTS_FILE),
        )


def _newest_step(folder: Path) -> int:
    found = newest_whole(folder)
    if found is None:
        raise CouldNotRun(
            f"verify-resume: the broken run left no whole checkpoint in {folder}; give more --steps"
        )
    return found.step


def first_difference(one: Path, two: Path) -> str | None:
    """The first tensor, by name, that two safetensors files do not share, and by how much; None when all are equal."""
    import torch
    from safetensors.torch import load_file

    a, b = load_file(one), load_file(two)
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            return f"{name} is in one of them alone"
        if a[name].shape != b[name].shape:
            return f"{name} has shape {tuple(a[name].shape)} and {tuple(b[name].shape)}"
        if not torch.equal(a[name], b[name]):
            apart = (a[name].float() - b[name].float()).abs()
            return f"{name}: {int((apart > 0).sum())} of {apart.numel()} values, by up to {float(apart.max()):.3g}"
    return None


def _run(order: Order) -> None:
    """Run one leg as a process of its own.

    Raises:
        CouldNotRun: it did not end as it should.
    """
    command = [sys.executable, "-P", "-m", "llmops.train.verify_resume", json.dumps(asdict(order))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = -signal.SIGKILL if order.leg == "broken" else 0
    if done.returncode != expected:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CouldNotRun(
            f"verify-resume: the {order.leg} run ended with {done.returncode}, not {expected} ({last}); "
            "does `llmops finetune` train this recipe?"
        )


def train_leg(order: Order) -> None:
    """Do what one leg is told, in this process; a broken leg does not come back."""
    from llmops.schema import no_progress
    from llmops.train.methods import TRAIN
    from llmops.train.plan import plan
    from llmops.train.session import Session
    from llmops.train.steps import Control

    folder = Path(order.folder)
    folder.mkdir(exist_ok=True)
    planned = plan(Path(order.recipe), find_workspace(Path(order.workspace)), folder, no_progress)
    recipe = planned.recipe.model_copy(update={"n_steps": order.n_steps, "report_to": ()})
    checkpoint = newest_whole(folder) if order.leg == "resumed" else None
    session: Session[Any] = Session(
        base=planned.base,
        examples=planned.examples,
        device=planned.device,
        scratch=folder / "trainer",
        adapter=folder / "adapter",
        parent=planned.parent.folder if planned.parent else None,
        aids=planned.aids,
        control=Control(
            checkpoint=Checkpoints(every_n_steps=order.save_every),
            early_stopping=recipe.early_stopping,
            resume=checkpoint.folder if checkpoint else None,
        ),
    )

    def on_step(step: int, _total: int, _figures: dict[str, float]) -> None:
        if order.leg == "broken" and step == order.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    TRAIN[recipe.method.kind](recipe, session, on_step)


if __name__ == "__main__":
    train_leg(Order(**json.loads(sys.argv[1])))
