"""Training in a child process that is killed with signal 9, at a step or in the middle of a save."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from llmops.settings import Workspace
from llmops.train.finetune import finetune, resume


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def at_step(step: int) -> Callable[[int, int, str], None]:
    """A progress callback that kills its process when it is told of a step."""

    def progress(done: int, total: int, note: str) -> None:
        if done == step and note.startswith("loss "):
            die()

    return progress


def in_save(step: int, n_th: int) -> Callable[[int, int, str], None]:
    """A progress callback that makes its process die when it opens the n-th file of the checkpoint behind `step`."""
    opened = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal opened
        if event == "open" and f"checkpoint-{step}" in str(arguments[0]):
            opened += 1
            if opened == n_th:
                die()

    sys.addaudithook(hook)
    return lambda done, total, note: None


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked child; the signal that killed it, 0 when it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def start(recipe: Path, workspace: Workspace, death: Callable[[], Callable[[int, int, str], None]]) -> int:
    """Begin a run in a child; `death` gives the child its progress callback. Returns the signal that killed it."""
    return in_child(lambda: finetune(recipe, workspace, death()))


def go_on(recipe: Path, workspace: Workspace, death: Callable[[], Callable[[int, int, str], None]]) -> int:
    """Go on with a run in a child; returns the signal that killed it."""
    return in_child(lambda: resume(recipe, workspace, death()))
