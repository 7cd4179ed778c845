"""Fixtures all tests share: a fresh workspace, tiny models built once, quiet libraries, and once a process what every
test would otherwise do again (the tree of commands, the tables of a fresh database)."""

from __future__ import annotations

import collections
import functools
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import sqlalchemy
import typer.main

for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE"):
    os.environ[name] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from llmops import db  # noqa: E402 - after the variables that libraries read
from llmops.settings import Workspace, find_workspace  # noqa: E402
from tests.tiny import build_tiny_adapter, build_tiny_model  # noqa: E402

typer.main.get_command = functools.cache(typer.main.get_command)  # 0.1 s for each command that a test runs

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    """The slow tier looks for new examples; every other one asks the same of a change, run after run."""
    if config.getoption("markexpr") != "slow":
        hypothesis.settings.load_profile("repeatable")
    if _is_default_tier(config) and hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = (
            False  # xdist would begin with the files of many, and so of quick, tests
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files of few tests first: they are the long ones, and no worker should come upon one once the others are done."""
    if _is_default_tier(config):
        n_tests = collections.Counter(item.path for item in items)
        items.sort(key=lambda item: n_tests[item.path])


def _is_default_tier(config: pytest.Config) -> bool:
    return "not walk" in config.getoption("markexpr")


@pytest.fixture(scope="session", autouse=True)
def _fresh_files_are_copies(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Alembic makes one SQLite file; a fresh file of this process gets the same statements in one write, in 5 ms."""
    migrate = db._migrate
    model = db.open_database(f"sqlite:///{tmp_path_factory.mktemp('model')}/model.db")
    with model.connect() as connection:
        revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        statements = connection.exec_driver_sql(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
        )
        made = [*statements.scalars(), f"INSERT INTO alembic_version VALUES ('{revision}')"]

    def migrate_or_copy(engine: sqlalchemy.Engine) -> None:
        if engine.dialect.name == "sqlite":
            with db.writing(engine) as connection:
                if not connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar():
                    for statement in made:
                        connection.exec_driver_sql(statement)
                    return
        migrate(engine)

    db._migrate = migrate_or_copy


@pytest.fixture(scope="session", autouse=True)
def _nothing_waits_for_the_disk() -> None:
    """What a process wrote outlives its kill without a sync; only a power cut would tell, and children sync as ever."""
    connected = db._on_sqlite_connect

    def connected_quickly(connection: Any, record: object) -> None:
        connected(connection, record)
        connection.execute("PRAGMA synchronous=OFF")

    db._on_sqlite_connect = connected_quickly
    os.fsync = lambda descriptor: None


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
