"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmops.settings import Workspace
from tests.train.support import Bench


@pytest.fixture
def bench(workspace: Workspace, tiny_model: Path) -> Bench:
    """A workspace with rows to train on."""
    bench = Bench(workspace, tiny_model)
    bench.rows()
    return bench
