"""One gateway for the room's tests: a tiny model in fp32 with three registered adapters, every part real."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmops.records import AdapterRecord
from llmops.registry.adapters import Registry
from llmops.registry.bases import Base, resolve_base
from llmops.settings import Workspace, find_workspace
from tests.serving.gateway import Endpoint, register_proved, serving, write_profile
from tests.tiny import build_tiny_adapter, build_tiny_model


@dataclass(frozen=True)
class Stage:
    """A workspace with a base and registered adapters."""

    workspace: Workspace
    registry: Registry
    base: Base
    adapters: tuple[AdapterRecord, ...]


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for answers of thousands of tokens."""
    return build_tiny_model(tmp_path_factory.mktemp("serving") / "model", max_len=4096)


@pytest.fixture(scope="session")
def peft_folders(long_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Adapters as PEFT saves them."""
    root = tmp_path_factory.mktemp("adapters")
    return tuple(build_tiny_adapter(long_model, root / str(seed), seed=seed) for seed in (1, 2, 3))


def make_stage(root: Path, model: Path, folders: tuple[Path, ...]) -> Stage:
    (root / "llmops.yaml").write_text("name: test\n")
    workspace = find_workspace(root)
    registry, base = Registry.of(workspace), resolve_base(str(model))
    adapters = tuple(register_proved(registry, base, folder) for folder in folders)
    return Stage(workspace, registry, base, adapters)


@pytest.fixture(scope="module")
def stage(
    long_model: Path, peft_folders: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory
) -> Stage:
    return make_stage(tmp_path_factory.mktemp("stage"), long_model, peft_folders)


@pytest.fixture(scope="module")
def endpoint(stage: Stage) -> Iterator[Endpoint]:
    profile = write_profile(stage.workspace.root, stage.base.path)
    with serving(profile, stage.workspace) as endpoint:
        yield endpoint
