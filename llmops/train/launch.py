"""Starting a run in several processes: on this machine through torch's elastic launcher, or through Ray Train.

Every process runs the same `llmops finetune` command; `llmops.train.ranks` tells them apart. The first speaks, what the
others say goes to `.llmops/logs/`. Several machines start the same command themselves (recipes/jobs/).
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmops.errors import CouldNotRun, TrainingFailed
from llmops.settings import Workspace
from llmops.train.recipe import Recipe

SAVE_TIMEOUT_S = 600
"""How long processes that were asked to end may take to end their step and save; then they are killed."""

SELF = ("-P", "-m", "llmops.cli", "finetune")


@dataclass(frozen=True)
class Start:
    """How one process is started: variables it gets besides the inherited ones, and its command line."""

    environment: dict[str, str]
    words: tuple[str, ...]

    def __str__(self) -> str:
        """One line of shell."""
        return " ".join([*(f"{k}={v}" for k, v in self.environment.items()), shlex.join(self.words)])


def starts(recipe: Recipe, words: tuple[str, ...]) -> tuple[Start, ...]:
    """How each process of a recipe is started on one machine, in order of rank; one process needs no launcher.

    Args:
        recipe: says how many.
        words: what follows `llmops finetune`.
    """
    command = (sys.executable, *SELF, *words)
    n = recipe.launch.processes
    if n == 1:
        return (Start({}, command),)
    common = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "OMP_NUM_THREADS": _threads(n)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    return tuple(Start({"RANK": str(i), "LOCAL_RANK": str(i), **common}, command) for i in range(n))


def start_elastic(n: int, workspace: Workspace, words: tuple[str, ...]) -> int:
    """Run `llmops finetune WORDS` in `n` processes of this machine and wait; returns the exit code of the first.

    Raises:
        CouldNotRun: the processes could not be started.
        TrainingFailed: one of them was killed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(
        logging.CRITICAL
    )  # the first process says it itself
    logs = workspace.logs / "ranks"
    logs.mkdir(parents=True, exist_ok=True)
    others = dict.fromkeys(range(1, n), Std.ALL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        run_id=uuid.uuid4().hex[:8],
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=SAVE_TIMEOUT_S,
        logs_specs=DefaultLogsSpecs(str(logs), redirects=others),
    )
    try:
        with _environment({"OMP_NUM_THREADS": _threads(n)}):
            elastic_launch(config, sys.executable)(*SELF, *words)
    except ChildFailedError as error:
        return _exit_code(error, logs)
    except SignalException as error:
        return 128 + int(error.sigval)
    except (OSError, RuntimeError) as error:
        raise CouldNotRun(f"launch: {n} processes could not be started ({error}); see {logs}") from error
    return 0


def _exit_code(error: Any, logs: Path) -> int:
    """The first process's own exit code; its message stands on stderr already.

    Raises:
        TrainingFailed: it has none, because another process failed: names that one with its last words.
    """
    if 0 in error.failures and error.failures[0].exitcode > 0:
        return int(error.failures[0].exitcode)
    rank, failure = error.get_first_failure()
    code = int(failure.exitcode)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    words = _last_words(Path(failure.error_file).parent / "stderr.log") if rank else ""
    raise TrainingFailed(
        f"process {rank} of the run: {how}{words}; nothing is registered; its output lies under {logs}"
    )


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return f" ({errors[-1]})" if errors else ""


def _threads(n: int) -> str:
    """Threads of each of `n` processes: the cores shared out, unless the user chose."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // n))


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
