"""Every YAML file of a workspace, loaded by the part of the program that reads it."""

from __future__ import annotations

from pathlib import Path

import yaml

from llmops.data import DataConfig
from llmops.evals.gate import load_gate
from llmops.evals.judge.load import load_judge
from llmops.evals.suite import SuiteConfig
from llmops.feedback.campaign_file import load_campaign_file
from llmops.feedback.rubric import load_rubric
from llmops.registry.rollout_plans import load_canary_plan
from llmops.serving.profile import load_profile
from llmops.settings import find_workspace, load_yaml
from llmops.train.recipe import load_recipe


def _as_yaml(path: Path) -> list[object]:
    """For other programs: Slurm's and Kubernetes' own tests, Prometheus, compose."""
    return list(yaml.safe_load_all(path.read_text()))


READERS = {
    "data": lambda path: load_yaml(path, DataConfig),
    "recipes": load_recipe,
    "recipes/jobs": _as_yaml,
    "serving": lambda path: (_as_yaml if path.name == "compose.yaml" else load_profile)(path),
    "serving/k8s": _as_yaml,
    "serving/prometheus": _as_yaml,
    "serving/rollouts": load_canary_plan,
    "evals/suites": lambda path: load_yaml(path, SuiteConfig),
    "evals/gates": load_gate,
    "evals/judges": load_judge,
    "feedback_ui": lambda path: (load_rubric if path.name == "rubric.yaml" else load_campaign_file)(path),
}


def load_all(root: Path) -> dict[str, object]:
    """What each YAML file under `root` says, by its relative path; a file that nothing reads is a KeyError."""
    loaded: dict[str, object] = {"llmops.yaml": find_workspace(root).config}
    for path in sorted(root.rglob("*.yaml")):
        name = path.relative_to(root)
        if name.as_posix() != "llmops.yaml":
            loaded[name.as_posix()] = READERS[name.parent.as_posix()](path)
    return loaded
