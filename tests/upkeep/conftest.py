"""A workspace with genuine records, for gc and backup."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.loop import Loop
from tests.upkeep.evidence import make_loop


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_adapter: Path) -> Path:
    """The folder in which the workspace was made, once: nothing in it knows where it lies."""
    folder = tmp_path_factory.mktemp("made")
    make_loop(folder, tiny_model, tiny_adapter)
    return folder


@pytest.fixture
def loop(tmp_path: Path, made: Path) -> Loop:
    """The workspace, a new copy for each test."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Loop(tmp_path / "ws", tmp_path / "cache")
