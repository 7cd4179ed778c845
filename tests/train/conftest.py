"""Fixtures of the training tests."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from llmops.settings import Workspace
from tests.train.support import Bench


@pytest.fixture(scope="session", autouse=True)
def frozen_libraries() -> None:
    """What collecting the tests has loaded is left out of garbage collection, which every run does twice in full."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums over threads are not in a fixed order."""
    torch.set_num_threads(1)


@pytest.fixture
def bench(workspace: Workspace, tiny_model: Path) -> Bench:
    """A workspace with rows to train on."""
    bench = Bench(workspace, tiny_model)
    bench.rows()
    return bench
