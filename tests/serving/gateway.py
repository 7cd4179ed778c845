"""A real gateway as a child process: started by the command line, asked over HTTP, read through its request log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from llmops.records import AdapterRecord
from llmops.registry.adapters import NewAdapter, Registry
from llmops.registry.bases import Base
from llmops.serving.lock import running
from llmops.settings import Workspace
from tests.evidence import LINEAGE

START_WITHIN_S = 400.0  # real vLLM on a busy box
PROBE_TEXTS = ("def add(a, b):\n    return a + b", "Return the sum of two numbers.", "class Point: x = 1")
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@dataclass(frozen=True)
class Endpoint:
    """A running gateway."""

    url: str
    workspace: Workspace
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    def post(self, path: str, body: Any, **kwargs: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **kwargs)

    def chat(self, model: str, text: str = "Say something.", **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **GREEDY, **fields}
        return self.post("/v1/chat/completions", body)

    def add(self, adapter: AdapterRecord) -> httpx.Response:
        return self.post("/llmops/adapters", {"adapter": adapter.adapter})

    def status(self) -> dict[str, Any]:
        body: dict[str, Any] = self.get("/llmops/status").json()
        return body

    def load(self) -> tuple[int, int]:
        """Requests the engine itself is generating for, and those that wait in it."""
        seen = httpx.get(self.status()["engine_process"]["url"] + "/load", timeout=30).json()
        return seen["n_running"], seen["n_waiting"]

    def logged(self, request_id: str, within_s: float = 10.0) -> dict[str, Any]:
        """The request log's line about a request."""
        path = self.workspace.logs / "requests.jsonl"
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            for line in path.read_text().splitlines() if path.is_file() else ():
                entry: dict[str, Any] = json.loads(line)
                if entry["request_id"] == request_id:
                    return entry
            time.sleep(0.02)
        raise AssertionError(f"{request_id} is not in {path}")

    def answered_by(self, response: httpx.Response) -> str | None:
        """Which adapter or base answered, as the request log has it."""
        answered: str | None = self.logged(response.headers["x-request-id"])["answered_by"]
        return answered

    def settled(self, registry: Registry, seq: int, within_s: float = 60.0) -> Any:
        """The ledger's answer to the release request with that number."""
        return wait_for(
            lambda: registry.ledger.events("release.activated", "release.refused", after=seq), within_s
        )[0]


def wait_for(what: Callable[[], Any], within_s: float = 30.0) -> Any:
    """The first true value of `what()`."""
    deadline = time.monotonic() + within_s
    while not (value := what()):
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)
    return value


def write_profile(folder: Path, base: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "base_model": str(base),
        "engine": {
            "kind": "transformers",
            "dtype": "float32",
            "device": "cpu",
            "max_num_seqs": 4,
            "n_threads": 1,
        },
        "port": 0,
        "max_model_tokens": 4096,
        "slots": 5,
        **changes,
    }
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(profile: Path, workspace: Workspace, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llmops.cli", "serve", str(profile), *options]
    environment = {**os.environ, "LLMOPS_WORKSPACE": str(workspace.root), "OMP_NUM_THREADS": "1"}
    output = (workspace.root / "serve.out").open("ab")
    with output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )


def finish(process: subprocess.Popen[bytes], within_s: float = 60.0) -> int:
    """The exit code of a serve that ends by itself or was told to."""
    try:
        return process.wait(within_s)
    finally:
        process.kill()
        process.wait()


def said(workspace: Workspace) -> str:
    """All that serves of this workspace printed and logged."""
    return (workspace.root / "serve.out").read_text()


@contextmanager
def serving(profile: Path, workspace: Workspace, *options: str) -> Iterator[Endpoint]:
    """A gateway that answers; stopped at the end."""
    process = start(profile, workspace, *options)
    try:
        deadline = time.monotonic() + START_WITHIN_S
        while (info := running(workspace)) is None or info.pid != process.pid:
            assert process.poll() is None, said(workspace)
            assert time.monotonic() < deadline, said(workspace)
            time.sleep(0.05)
        yield Endpoint(info.url, workspace, process)
    finally:
        process.terminate()
        finish(process)


def register_proved(
    registry: Registry, base: Base, folder: Path, name: str = "docs", probes_of: Path | None = None
) -> AdapterRecord:
    """Register a PEFT folder with the probes a trainer would have computed for it (or for `probes_of`)."""
    from llmops.train.probes import compute_probes

    token_ids = tuple(tuple(text.encode()) for text in PROBE_TEXTS)  # tests/tiny.py: ids are bytes
    probes = compute_probes(base.path, probes_of or folder, token_ids)
    return registry.register(NewAdapter(name, folder, base, base.contract, probes, LINEAGE, {}))
