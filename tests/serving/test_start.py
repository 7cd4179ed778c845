"""What keeps a gateway from starting: said in one line with its exit code, and nothing stays behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from llmops.auth import Keys, NewKey
from llmops.errors import ConfigError
from llmops.serving.lock import running, serve_lock
from llmops.serving.profile import load_profile
from llmops.settings import Workspace
from tests.in_process import llmops
from tests.serving.gateway import finish, said, start, wait_for, write_profile

ROOT = Path(__file__).parents[2]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_port_in_use_is_found_before_the_engine_starts(
    workspace: Workspace, tiny_model: Path, taken: int
) -> None:
    profile = write_profile(workspace.root, tiny_model)
    done = llmops(workspace.root, "serve", str(profile), "--port", str(taken))
    assert done.code == 5
    (line,) = done.err.splitlines()
    assert f"port {taken} on 127.0.0.1: Address already in use" in line
    assert not (workspace.logs / "engine.log").exists()
    with serve_lock(workspace):
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "serving.example"])
def test_address_that_others_reach_is_refused_without_keys(workspace: Workspace, host: str) -> None:
    profile = write_profile(workspace.root, Path("none"), host=host)
    Keys.of(workspace).create(NewKey("ada", "rater"))  # opens the rating page, not the endpoint
    done = llmops(workspace.root, "serve", str(profile))
    assert done.code == 2
    assert "host: this address can be reached from other machines and there are no keys" in done.err
    assert host in done.err
    assert not (workspace.state / "serve.lock").exists()


def test_flag_s_address_is_held_to_the_same_and_a_revoked_key_is_none(workspace: Workspace) -> None:
    keys, profile = Keys.of(workspace), write_profile(workspace.root, Path("none"))
    keys.revoke(keys.create(NewKey("app", "operator")).key.id)
    done = llmops(workspace.root, "serve", str(profile), "--host", "0.0.0.0")
    assert (done.code, "there are no keys" in done.err) == (2, True)


def test_with_a_key_other_addresses_may_be_bound(workspace: Workspace) -> None:
    Keys.of(workspace).create(NewKey("app", "operator"))
    missing = workspace.root / "no-model"
    done = llmops(workspace.root, "serve", str(write_profile(workspace.root, missing)), "--host", "0.0.0.0")
    assert "no keys" not in done.err
    assert str(missing) in done.err  # it came as far as looking for the base model


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tls-certificate", "none.pem", "--tls-key", "none.pem"], "none.pem cannot be used (No such file"),
        (["--tls-certificate", "profile.yaml", "--tls-key", "profile.yaml"], "profile.yaml cannot be used ("),
        (["--tls-certificate", "none.pem"], "tls.key is missing"),
    ],
)
def test_certificate_that_is_none_is_refused_before_anything_starts(
    workspace: Workspace, words: list[str], said: str
) -> None:
    done = llmops(workspace.root, "serve", str(write_profile(workspace.root, Path("none"))), *words)
    assert done.code == 2
    assert said in done.err
    assert not (workspace.state / "serve.lock").exists()


def test_misspelt_setting_is_answered_with_the_nearest(workspace: Workspace, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="max_lora_rnk is not a setting; did you mean max_lora_rank"):
        load_profile(write_profile(workspace.root, tiny_model, max_lora_rnk=8))


@pytest.mark.parametrize("name", ["local.yaml", "vllm.yaml"])
def test_shipped_profile_loads_and_starts_with_its_command(name: str) -> None:
    path = ROOT / "serving" / name
    load_profile(path)
    assert path.read_text().splitlines()[0] == f"# llmops serve serving/{name}"


def test_record_of_a_serve_that_was_killed_is_not_believed(workspace: Workspace) -> None:
    workspace.serve_file.write_text('{"pid": 1, "url": "http://127.0.0.1:1", "engine": {}, "started_at": ""}')
    assert running(workspace) is None
    with serve_lock(workspace):
        assert not workspace.serve_file.exists()


def test_port_answers_503_while_the_engine_starts_and_a_signal_ends_it(
    workspace: Workspace, tiny_model: Path
) -> None:
    model = shutil.copytree(tiny_model, workspace.root / "model")  # a path no other engine has
    process = start(write_profile(workspace.root, model), workspace)
    owner = workspace.state / "serve.lock"
    try:
        wait_for((workspace.logs / "engine.log").exists, within_s=60)
        assert wait_for(lambda: str(model) in command_lines())
        url = json.loads(owner.read_text())["url"]
        ready = httpx.get(url + "/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "the engine is starting")
        assert httpx.get(url + "/healthz").status_code == 200
        asked = httpx.post(url + "/v1/completions", json={"model": "docs", "prompt": "a"})
        assert asked.status_code == 503
        assert "retry-after" in asked.headers
        assert running(workspace) is None
        process.terminate()
        assert finish(process) == 0, said(workspace)
    finally:
        process.kill()
        process.wait()
    with serve_lock(workspace):
        assert str(model) not in command_lines()


def command_lines() -> str:
    """The command lines of all processes."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(entry.read_text(errors="replace"))
    return "\n".join(found)


@pytest.mark.walk
def test_gateway_runs_under_an_asgi_server_of_the_user(workspace: Workspace, tiny_model: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    profile = write_profile(workspace.root, tiny_model, port=port, max_model_tokens=512)
    command = [sys.executable, "-m", "uvicorn", "--factory", "serving.app:build", "--port", str(port)]
    environment = {
        **os.environ,
        "LLMOPS_WORKSPACE": str(workspace.root),
        "LLMOPS_PROFILE": str(profile),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        wait_for(lambda: running(workspace) or process.poll() is not None, within_s=120)
        models = httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"]
        body = {"model": models[0]["id"], "prompt": "a", "max_tokens": 1}
        assert httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body).status_code == 200
        process.terminate()
        process.wait(60)
        assert running(workspace) is None
    finally:
        process.kill()
        process.wait()
