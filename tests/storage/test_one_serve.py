"""One serve answers for a shared database, wherever it runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from llmops.errors import CouldNotRun
from llmops.serving.lock import serve_lock
from llmops.settings import Workspace
from tests.serving.gateway import write_profile
from tests.storage.backends import another_workspace

HOLDER = """
import sys, time
from pathlib import Path
from llmops.serving.lock import serve_lock
from llmops.settings import find_workspace
with serve_lock(find_workspace(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(on_postgres: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return another_workspace(tmp_path_factory.mktemp("other") / "workspace")


def test_second_serve_on_the_same_database_is_refused_in_one_line(
    on_postgres: Workspace, other: Workspace, tiny_model: Path
) -> None:
    command = [sys.executable, "-m", "llmops.cli", "serve", str(write_profile(other.root, tiny_model))]
    with serve_lock(on_postgres):
        done = subprocess.run(
            command, cwd=other.root, capture_output=True, text=True, timeout=200, check=False
        )
    assert done.returncode == 5
    line = done.stderr.strip().splitlines()[-1]
    assert re.search(
        rf"serve: process {os.getpid()} on \S+ serves this workspace's database already; use it, or end it with "
        "`llmops stop` there",
        line,
    )
    assert "Traceback" not in done.stderr
    assert not (other.logs / "engine.log").exists()


def test_same_workspace_still_names_the_process_here(on_postgres: Workspace) -> None:
    with (
        serve_lock(on_postgres),
        pytest.raises(CouldNotRun, match=rf"process {os.getpid()} serves this workspace already"),
        serve_lock(on_postgres),
    ):
        pass


def test_lock_ends_with_its_holder_however_it_ends(on_postgres: Workspace, other: Workspace) -> None:
    with serve_lock(on_postgres):
        pass
    command = [sys.executable, "-c", HOLDER, str(on_postgres.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CouldNotRun, match=f"process {holder.pid} on"), serve_lock(other):
            pass
        holder.kill()
    deadline = time.monotonic() + 60  # the server notices the end of a connection in its own time
    while time.monotonic() < deadline:
        with suppress(CouldNotRun), serve_lock(other):
            return
    raise AssertionError("the lock of a killed process is still held")


def test_two_files_are_two_databases(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    one, two = (another_workspace(tmp_path / name) for name in ("one", "two"))
    with serve_lock(one), serve_lock(two):
        pass
