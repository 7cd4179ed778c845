"""What happens between two steps of any trainer: tokens are counted, checkpoints written, a wish to end is heard.

`StepControl` stands in front of a trainer's other callbacks. It writes checkpoints into the trainer's own folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from llmops import checkpoints
from llmops.schema import JsonDict
from llmops.train.early import Lowest
from llmops.train.interrupt import Stop
from llmops.train.loop import IGNORED
from llmops.train.ranks import any_of_all, from_first, place, wait_for_all
from llmops.train.recipe.control import Checkpoints, EarlyStopping

EVERY_S = 600.0  # between checkpoints of a recipe that names no number of steps
STATE_FILE, BEST_FILE = "llmops.json", "best.safetensors"

HeldOut = Callable[[], float]
"""The loss over the held-out rows as the model is now."""


@dataclass(frozen=True)
class Control:
    """What a session's training is saved, resumed and ended by."""

    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    early_stopping: EarlyStopping | None = None
    resume: Path | None = None  # a whole checkpoint
    stop: Stop = field(default_factory=Stop)


class Tally:
    """Tokens and supervised tokens of the step under way, counted over the batches the trainer reads."""

    def __init__(self, trainer: Any) -> None:
        """Count what `trainer` fetches for each step from now on."""
        self._n_tokens = self._n_supervised = torch.zeros((), dtype=torch.long)
        self._fetch = trainer.get_batch_samples
        trainer.get_batch_samples = self._counted

    def _counted(self, *args: Any) -> Any:
        batches, n_items = self._fetch(*args)
        for batch in batches:
            self._add(batch)
        return batches, n_items

    def _add(self, batch: Any) -> None:
        if not isinstance(batch, dict) and not hasattr(batch, "keys"):
            return  # text that becomes tokens within the step
        if "attention_mask" in batch:
            self._n_tokens = self._n_tokens + batch["attention_mask"].sum()
        elif "input_ids" in batch:
            self._n_tokens = self._n_tokens + batch["input_ids"].numel()
        if "labels" in batch:
            self._n_supervised = self._n_supervised + (batch["labels"] != IGNORED).sum()
        elif "completion_mask" in batch:
            self._n_supervised = self._n_supervised + batch["completion_mask"].sum()

    def take(self) -> tuple[int, int]:
        """Tokens (padding not counted) and supervised tokens since the last call."""
        found = int(self._n_tokens), int(self._n_supervised)
        self._n_tokens = self._n_supervised = torch.zeros((), dtype=torch.long)
        return found


class StepControl(TrainerCallback):  # type: ignore[misc]
    """Decides after every step whether it is saved and whether it is the last."""

    def __init__(self, trainer: Any, control: Control, held_out: HeldOut | None) -> None:
        """Watch `trainer`, whose folder gets the checkpoints; `held_out` is what early stopping looks at."""
        self.model, self.folder = trainer.model, Path(trainer.args.output_dir)
        self.control, self.held_out = control, held_out
        self.tally = Tally(trainer)
        self.lowest = Lowest(control.early_stopping) if control.early_stopping else None
        self.interrupted = False
        self.before_s = 0.0  # that training took before it was resumed
        self._begun = self._saved = self._stepped = time.monotonic()
        self._figures: dict[str, float] = {}
        if control.resume:
            self._restore(control.resume)

    @property
    def train_s(self) -> float:
        """Seconds that training has taken, those before it was resumed with them."""
        return self.before_s + time.monotonic() - self._begun

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the held-out loss where it is due, then decide."""
        self._count()
        last = state.global_step >= state.max_steps
        if self.lowest and self.lowest.due(state.global_step, last):
            self._look(self.lowest, state.global_step)
            if self.lowest.exhausted:
                control.should_training_stop = True
                return  # nothing to go on with: resuming an older checkpoint comes to the same end
        self.interrupted = any_of_all(self.control.stop.asked)
        if self.interrupted:
            control.should_training_stop = True
        if self.interrupted or (self._due(state.global_step) and not last):
            control.should_save = True

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: JsonDict, **_: Any) -> None:
        """Add the step's tokens, and the held-out loss where it was looked at, to the line that carries its loss."""
        if "loss" in logs:
            logs.update(self._figures)
            self._figures = {}

    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Complete what the trainer has written, and make it whole."""
        wait_for_all()
        if place().first:
            folder = self.folder / f"checkpoint-{state.global_step}"
            kept = {"train_s": self.train_s, "lowest": self.lowest.state() if self.lowest else None}
            (folder / STATE_FILE).write_text(json.dumps(kept))
            if self.lowest and self.lowest.weights:
                save_file(self.lowest.weights, folder / BEST_FILE)
            checkpoints.seal(folder)
            checkpoints.prune(self.folder.parent, self.control.checkpoint.keep)
        wait_for_all()
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Give the model the weights with the lowest held-out loss, where early stopping has looked."""
        if self.lowest and self.lowest.weights:
            self.lowest.put_back(self.model)

    def _restore(self, folder: Path) -> None:
        kept = json.loads((folder / STATE_FILE).read_text())
        self.before_s = float(kept["train_s"])
        if self.lowest and kept["lowest"]:
            best = folder / BEST_FILE
            self.lowest.restore(kept["lowest"], load_file(best) if best.is_file() else {})

    def _due(self, step: int) -> bool:
        every = self.control.checkpoint.every_n_steps
        if every is not None:
            return step % every == 0
        return any_of_all(time.monotonic() - self._saved >= EVERY_S)

    def _look(self, lowest: Lowest, step: int) -> None:
        if self.held_out is None:
            raise TypeError("early stopping: this method of training has no held-out loss to look at")
        loss = from_first(self.held_out())  # a reward may differ from call to call, and all must end together
        self._figures["held_out_loss"] = loss
        lowest.look(step, loss, self.model)

    def _count(self) -> None:
        now = time.monotonic()
        seconds, self._stepped = max(now - self._stepped, 1e-9), now
        n_tokens, n_supervised = self.tally.take()
        if n_tokens:
            self._figures |= {"n_tokens": n_tokens, "tokens_per_s": round(n_tokens / seconds, 1)}
        if n_supervised:
            per_s = round(n_supervised / seconds, 1)
            self._figures |= {"n_supervised_tokens": n_supervised, "supervised_tokens_per_s": per_s}
