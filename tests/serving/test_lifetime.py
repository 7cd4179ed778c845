"""One gateway from its start over a lost engine to its end. The tests stand in the order of its life and share it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmops.ledger import Event
from llmops.records import AdapterRecord, EngineSignature
from llmops.registry.approvals import approve
from llmops.registry.releases import request_override, request_promotion, request_rollback
from llmops.serving.lock import running, stop
from tests.evidence import activate, decide
from tests.registry.consent import asking
from tests.serving.conftest import Stage, make_stage
from tests.serving.gateway import Endpoint, finish, said, serving, wait_for, write_profile

REASON = "written for this test"


@dataclass(frozen=True)
class Life:
    """A gateway that was started on a workspace with six damaged names."""

    stage: Stage
    endpoint: Endpoint
    waiting: Event


def _promoted(stage: Stage, name: str, adapter: AdapterRecord, engine: EngineSignature) -> str:
    """Release as if a gateway had served then; returns the digest of the candidate's report."""
    decision, _ = decide(stage.registry, adapter, engine, public_name=name)
    event, _ = request_promotion(stage.registry, name, engine)
    activate(stage.registry, event)
    return decision.reports[0]


def _agreed(stage: Stage, name: str, adapter: AdapterRecord, engine: EngineSignature) -> str:
    """Release on votes and an approval as if a gateway had served then; returns the approval's digest."""
    plain, _ = decide(stage.registry, adapter, engine, public_name=name)
    asking(stage.registry, plain, 1, rated=True)
    approval = approve(stage.registry, name, "ann", None)
    activate(stage.registry, request_promotion(stage.registry, name, engine)[0])
    return approval.digest()


def _change_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def life(
    long_model: Path, peft_folders: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Life]:
    stage = make_stage(tmp_path_factory.mktemp("life"), long_model, peft_folders)
    store, base = stage.registry.store, stage.base
    engine = EngineSignature(
        "transformers", version("transformers"), "float32", None, "cpu", base.digest, 4096
    )
    first, second, third = stage.adapters
    _promoted(stage, "healthy", second, engine)
    _promoted(stage, "tampered", first, engine)
    report = _promoted(stage, "reportless", third, engine)
    _promoted(stage, "elsewhere", second, EngineSignature(**{**engine.to_pairs(), "dtype": "bfloat16"}))
    approval = _agreed(stage, "unapproved", second, engine)
    _agreed(stage, "unrated", third, engine)
    event, release = request_override(stage.registry, "damaged", second, REASON)
    activate(stage.registry, event)
    waiting, _ = request_override(stage.registry, "waiting", third, REASON)
    _change_a_byte(store.path("adapter", first.adapter) / "adapter_model.safetensors")
    (store.path("report_record", report) / "record.json").unlink()
    _change_a_byte(store.path("release_record", release.digest()) / "record.json")
    (store.path("approval_record", approval) / "record.json").unlink()
    with sqlite3.connect(stage.workspace.state / "llmops.db") as connection:
        connection.execute(
            "UPDATE ratings SET choice = 'tie' WHERE number = (SELECT max(number) FROM ratings)"
        )
    with serving(write_profile(stage.workspace.root, base.path), stage.workspace) as endpoint:
        yield Life(stage, endpoint, waiting)


def answers(endpoint: Endpoint, name: str) -> str:
    response = endpoint.chat(name)
    assert response.status_code == 200, response.text
    return str(endpoint.answered_by(response))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tampered", "adapter_model.safetensors was changed"),
        ("reportless", "report_record"),
        ("elsewhere", "measured on dtype=bfloat16, this engine has dtype=float32"),
        ("damaged", "release_record"),
        ("unapproved", "approval_record"),
        ("unrated", "was changed after it was given"),
    ],
)
def test_name_whose_evidence_is_damaged_answers_503_and_says_why(life: Life, name: str, why: str) -> None:
    response = life.endpoint.chat(name)
    assert response.status_code == 503
    assert why in response.json()["error"]["message"]
    status = life.endpoint.status()["routes"]["names"][name]
    assert status["ok"] is False
    assert why in status["reason"]
    assert name not in {card["id"] for card in life.endpoint.get("/v1/models").json()["data"]}


def test_the_other_names_go_on_serving(life: Life) -> None:
    assert life.endpoint.get("/readyz").status_code == 200
    assert answers(life.endpoint, "healthy") == life.stage.adapters[1].adapter


def test_request_made_while_nothing_served_is_settled_at_the_start(life: Life) -> None:
    assert life.endpoint.settled(life.stage.registry, life.waiting.seq).kind == "release.activated"
    assert answers(life.endpoint, "waiting") == life.stage.adapters[2].adapter


def test_other_names_go_on_moving(life: Life) -> None:
    registry, (_, second, third) = life.stage.registry, life.stage.adapters
    event, _ = request_override(registry, "healthy", third, REASON)
    assert life.endpoint.settled(registry, event.seq).kind == "release.activated"
    assert answers(life.endpoint, "healthy") == third.adapter
    event, _ = request_rollback(registry, "healthy", None)
    assert life.endpoint.settled(registry, event.seq).kind == "release.activated"
    assert answers(life.endpoint, "healthy") == second.adapter


def test_tampered_adapter_is_refused_by_name_at_the_endpoint(life: Life) -> None:
    response = life.endpoint.add(life.stage.adapters[0])
    assert response.status_code == 422
    assert "adapter_model.safetensors was changed" in response.json()["error"]["message"]


def test_second_serve_of_the_workspace_names_the_first(life: Life, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmops.cli", "serve", str(life.stage.workspace.root / "profile.yaml")]
    environment = {**os.environ, "LLMOPS_WORKSPACE": str(life.stage.workspace.root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5, done.stderr
    assert (
        f"process {life.endpoint.process.pid} serves this workspace already at {life.endpoint.url}"
        in done.stderr
    )
    assert life.endpoint.get("/readyz").status_code == 200


def test_lost_engine_ends_streams_with_an_error_and_comes_back(life: Life) -> None:
    endpoint = life.endpoint
    long = {"prompt": "a", "max_tokens": 4000, "temperature": 0, "ignore_eos": True}
    before = endpoint.status()["engine_process"]["pid"]
    got: dict[str, Any] = {}

    def ask_whole() -> None:
        got["whole"] = endpoint.post("/v1/completions", {"model": "healthy", **long})

    thread = threading.Thread(target=ask_whole)
    thread.start()
    body = {"model": "healthy", "stream": True, **long}
    with httpx.Client(timeout=60).stream("POST", endpoint.url + "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        wait_for(lambda: endpoint.load() == (2, 0))
        os.kill(before, signal.SIGKILL)
        rest = [line for line in lines if line]
    thread.join()
    last = json.loads(rest[-1].removeprefix("data: "))
    assert last["error"]["code"] == "engine_lost"
    assert all(json.loads(line.removeprefix("data: ")) for line in rest)
    assert endpoint.logged(response.headers["x-request-id"])["error"] is not None
    assert got["whole"].status_code == 502
    wait_for(lambda: endpoint.get("/readyz").status_code == 503)
    meanwhile = endpoint.chat("healthy")
    assert meanwhile.status_code == 503
    assert int(meanwhile.headers["retry-after"]) >= 1
    assert endpoint.get("/healthz").status_code == 200
    wait_for(lambda: endpoint.get("/readyz").status_code == 200, within_s=60)
    assert endpoint.status()["engine_process"]["pid"] != before
    assert answers(endpoint, "healthy") == life.stage.adapters[1].adapter
    assert answers(endpoint, "waiting") == life.stage.adapters[2].adapter
    assert endpoint.chat("tampered").status_code == 503


def test_stopping_finishes_what_runs_and_leaves_nothing_behind(life: Life) -> None:
    endpoint, workspace = life.endpoint, life.stage.workspace
    engine = endpoint.status()["engine_process"]["pid"]
    body = {"model": "healthy", "prompt": "a", "max_tokens": 400, "temperature": 0, "ignore_eos": True}
    got: dict[str, Any] = {}

    def ask() -> None:
        got["answer"] = endpoint.post("/v1/completions", body)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: endpoint.load() == (1, 0))
    assert stop(workspace) is True
    assert finish(endpoint.process) == 0, said(workspace)
    thread.join()
    answer: httpx.Response = got["answer"]
    assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 400)
    assert endpoint.logged(answer.headers["x-request-id"])["status"] == 200
    assert running(workspace) is None
    assert not workspace.serve_file.exists()
    assert stop(workspace) is False
    wait_for(lambda: not Path(f"/proc/{engine}").exists())
    kinds = [e.kind for e in life.stage.registry.ledger.events("serve.started", "serve.stopped")]
    assert kinds == ["serve.started", "serve.stopped"]
    assert life.stage.registry.ledger.verify() > 0
