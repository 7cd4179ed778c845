"""Fixtures every room's tests share: a fresh workspace, tiny models built once, and quiet libraries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE"):
    os.environ[name] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from llmops.settings import Workspace, find_workspace  # noqa: E402 - after the variables that libraries read
from tests.tiny import build_tiny_adapter, build_tiny_model  # noqa: E402


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace."""
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    return find_workspace(tmp_path)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model's folder."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT adapter of the tiny model with visible effect."""
    return build_tiny_adapter(tiny_model, tmp_path_factory.mktemp("tiny") / "adapter", seed=1)
