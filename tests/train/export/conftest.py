"""Fixtures of the export tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmops.settings import Workspace
from llmops.train.importer import ImportRequest, import_adapter
from tests.train.export.support import Shop


@pytest.fixture
def shop(workspace: Workspace, tiny_model: Path, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A workspace with the adapter `docs`, registered."""
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(workspace.root))
    record = import_adapter(ImportRequest(tiny_adapter, str(tiny_model), "docs"), workspace)
    return Shop(workspace, tiny_model, tiny_adapter, record)
