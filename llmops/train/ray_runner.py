"""A run's processes on a Ray cluster: Ray Train places them and lets them meet; each then does what torchrun's would.

Needs the extra `ray`. The cluster is that of RAY_ADDRESS, or one on this machine for the time of the run. Every node
needs the same packages, and the workspace under the same path or shared state (LLMOPS_DATABASE_URL, LLMOPS_STORE_URL).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from llmops.errors import ConfigError, CouldNotRun, LlmopsError, TrainingFailed
from llmops.settings import Workspace, find_workspace
from llmops.train.recipe import Overrides, load_recipe

_CARRIED = ("LLMOPS_", "OMP_NUM_THREADS", "HF_", "DO_NOT_TRACK", "MLFLOW_", "PYTHONPATH", "GLIBC_TUNABLES")
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_V2_ENABLED": "1", "RAY_DEDUP_LOGS": "0"}


def start_on_ray(
    recipe_path: Path, workspace: Workspace, overrides: Overrides = (), resumed: bool = False
) -> str:
    """Run a recipe in `launch.processes` Ray workers and wait; returns the digest of the adapter it registered.

    Args:
        recipe_path: a recipe.
        workspace: where it runs.
        overrides: settings that replace the file's.
        resumed: go on with its newest unfinished run.

    Raises:
        ConfigError: Ray is not installed.
        CouldNotRun: the cluster does not give the workers.
        LlmopsError: what the first process ended with.
    """
    from llmops.train.model import pick_device

    recipe = load_recipe(recipe_path, overrides)
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    try:
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.util.queue import Queue
    except ImportError:
        raise ConfigError(
            "launch.runner: ray needs Ray Train, which is not installed; pip install 'llmops[ray]', or set torchrun"
        ) from None

    carried = {k: v for k, v in os.environ.items() if k.startswith(_CARRIED)}
    quiet = {"log_to_driver": False, "include_dashboard": False, "logging_level": logging.ERROR}
    try:
        ray.init(runtime_env={"env_vars": carried}, **quiet)
    except (OSError, RuntimeError, TimeoutError) as error:
        raise CouldNotRun(f"launch.runner: ray: no cluster ({error}); check RAY_ADDRESS") from error
    try:
        answer = Queue(maxsize=1)
        workers = {"num_workers": recipe.launch.processes, "use_gpu": pick_device(recipe.device) == "cuda"}
        TorchTrainer(
            train_one,
            train_loop_config={"recipe": recipe_path.resolve(), "root": workspace.root, "answer": answer}
            | {"overrides": overrides, "resumed": resumed},
            scaling_config=ScalingConfig(**workers),
            run_config=RunConfig(name="llmops", storage_path=str(workspace.logs / "ray")),
        ).fit()
        return str(answer.get(block=False))
    except Exception as error:
        raise _as_ours(error) from error
    finally:
        ray.shutdown()


def train_one(config: dict[str, Any]) -> None:
    """What each Ray worker runs: the first trains, registers and gives the adapter's digest, the others train along."""
    from llmops.train.finetune import finetune, resume
    from llmops.train.follow import follow
    from llmops.train.ranks import place

    os.chdir(config["root"])
    workspace, path = find_workspace(config["root"]), config["recipe"]
    overrides = config["overrides"]
    if not place().first:
        follow(path, workspace, overrides)
        return
    train = resume if config["resumed"] else finetune
    config["answer"].put(train(path, workspace, overrides=overrides).adapter)


def _as_ours(error: Exception) -> LlmopsError:
    """The error the first failing worker ended with, or what Ray says."""
    failures: dict[int, Any] = getattr(error, "worker_failures", {})
    for rank in sorted(failures):
        cause = getattr(failures[rank], "_base_exc", failures[rank])
        if isinstance(cause, LlmopsError):
            return cause
        return TrainingFailed(
            f"process {rank} of the run: {type(cause).__name__}: {cause}; nothing is registered; see .llmops/logs/ray"
        )
    return CouldNotRun(f"launch.runner: ray: {type(error).__name__}: {error}; check the cluster")
