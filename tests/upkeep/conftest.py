"""A workspace with genuine records, for gc and backup."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.loop import Loop
from tests.upkeep.evidence import make_loop


@pytest.fixture
def loop(tmp_path: Path, tiny_model: Path, tiny_adapter: Path) -> Loop:
    """The workspace, a new one for each test."""
    return make_loop(tmp_path, tiny_model, tiny_adapter)
