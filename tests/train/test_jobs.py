"""The job examples: the Slurm script runs, the Kubernetes manifests are valid, and both call a command that exists."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmops.registry.adapters import Registry
from tests.command_line import parse
from tests.train.support import Bench

JOBS = Path(__file__).parents[2] / "recipes" / "jobs"


def _manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((JOBS / "finetune-job.yaml").read_text()))


@pytest.mark.parametrize("index", [0, 1])
def test_manifests_are_what_kubernetes_takes(index: int) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(_manifests()[index], validate.latest_version(), strict=True)


def test_pods_of_the_job_run_a_command_that_exists_in_as_many_processes_as_it_sets() -> None:
    service, job = _manifests()
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    words = container["command"]
    asked = parse(words[words.index("llmops.cli") + 1 :])
    assert str(asked["recipe"]) == "recipes/docstrings-sft.yaml"
    per_pod = int(words[2].removeprefix("--nproc-per-node="))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == per_pod
    n_pods = job["spec"]["completions"]
    assert words[1] == f"--nnodes={n_pods}"
    assert asked["settings"] == [f"launch.processes={n_pods * per_pod}"]
    assert f"--master-addr={job['metadata']['name']}-0.{service['metadata']['name']}" in words
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}


def _tool(folder: Path, name: str, line: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.walk
def test_slurm_script_trains_in_all_processes_of_its_allocation(bench: Bench, tmp_path: Path) -> None:
    """Slurm's own commands are stood in for: one machine, whose `srun` runs what it is given."""
    tools = tmp_path / "tools"
    tools.mkdir()
    _tool(tools, "srun", 'exec "$@"')
    _tool(tools, "scontrol", "echo 127.0.0.1")
    _tool(tools, "torchrun", f'exec {sys.executable} -m torch.distributed.run "$@"')
    bench.recipe()
    slurm = {"JOB_NODELIST": "here", "JOB_NUM_NODES": "1", "JOB_ID": "7", "GPUS_ON_NODE": "2"}
    done = subprocess.run(
        ["bash", JOBS / "finetune.sbatch", "recipe.yaml"],
        cwd=bench.root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{tools}:{os.environ['PATH']}"}
        | {f"SLURM_{name}": value for name, value in slurm.items()},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    registry = Registry.of(bench.workspace)
    assert registry.lineage(registry.adapter("tiny-sft")).recipe["launch"]["processes"] == 2
