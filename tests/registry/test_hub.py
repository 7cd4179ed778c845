"""Base models on a model hub: what is fetched, and that a look without weights knows the same digest.

The hub is one on loopback that speaks the endpoints huggingface_hub reads from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest

from llmops.errors import BadRequest, CouldNotRun
from llmops.registry.bases import folder_digest, glimpse_base, resolve_base
from tests.in_process import llmops

COMMIT = "c" * 40


@dataclass
class Hub:
    """A hub with one model, `team/base`, and the files that were asked of it."""

    folder: Path
    tells_digests: bool = True
    asked: list[str] = field(default_factory=list)

    def info(self) -> dict[str, Any]:
        siblings = []
        for path in sorted(self.folder.iterdir()):
            content = path.read_bytes()
            entry: dict[str, Any] = {"rfilename": path.name, "size": len(content), "blobId": "b" * 40}
            if path.suffix == ".safetensors" and self.tells_digests:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": "team/base", "modelId": "team/base", "sha": COMMIT, "siblings": siblings, "tags": []}


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(tiny_model)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._file(with_body=False)

        def do_GET(self) -> None:
            if "/api/models/team/base" in self.path:
                if "/tree/" in self.path:
                    listing = [
                        {
                            "type": "file",
                            "path": s["rfilename"],
                            "size": s["size"],
                            "oid": s["blobId"],
                        }
                        for s in hub.info()["siblings"]
                    ]
                    return self._json(listing)
                return self._json(hub.info())
            return self._file(with_body=True)

        def _file(self, with_body: bool) -> None:
            path = hub.folder / self.path.rpartition("/")[2]
            if "team/base/resolve" not in self.path or not path.is_file():
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if with_body:
                hub.asked.append(path.name)
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def _json(self, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    for name, value in (
        ("ENDPOINT", url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"),
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_DISABLE_XET", True),
        ("HF_HUB_CACHE", str(tmp_path / "cache")),
    ):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def test_a_look_fetches_no_weights_and_knows_the_digest_of_the_whole(hub: Hub) -> None:
    seen = glimpse_base("team/base")
    assert "model.safetensors" not in hub.asked
    assert {"config.json", "tokenizer.json"} <= set(hub.asked)
    assert seen.digest == folder_digest(hub.folder)
    whole = resolve_base("team/base")
    assert "model.safetensors" in hub.asked
    assert (whole.digest, whole.contract) == (seen.digest, seen.contract)


def test_hub_that_tells_no_digest_gives_the_model_whole(hub: Hub) -> None:
    hub.tells_digests = False
    assert glimpse_base("team/base").digest == folder_digest(hub.folder)
    assert "model.safetensors" in hub.asked


def test_model_the_hub_does_not_have_is_an_error_of_the_hub(hub: Hub) -> None:
    with pytest.raises(CouldNotRun, match=r"team/nothing: the model hub did not deliver it"):
        glimpse_base("team/nothing")


def test_hub_that_cannot_be_reached_is_no_fault_of_ours(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nobody = "http://127.0.0.1:9"  # discard: nothing listens
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nobody)
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    done = llmops(tmp_path, "base", "fetch", "team/base")
    assert done.code == 5
    assert "base model team/base: the model hub did not deliver it" in done.err
    assert "fault of llmops" not in done.err


def test_model_without_safetensors_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.folder = tmp_path / "bare"
    hub.folder.mkdir()
    (hub.folder / "config.json").write_text("{}")
    with pytest.raises(BadRequest, match=r"team/base: has no \*\.safetensors"):
        resolve_base("team/base")


def test_check_of_a_recipe_leaves_the_weights_on_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    rows = [{"prompt": f"say {i}", "completion": f"said {i}"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: docs\nbase_model: team/base\nmethod: {kind: sft}\ndata: {kind: files, paths: [rows.jsonl]}\n"
        "max_tokens: 128\nn_steps: 1\nheld_out_frac: 0\ntracking: none\n"
    )
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(tmp_path))
    done = llmops(tmp_path, "finetune", str(recipe), "--check")
    assert done.code == 0, done.out + done.err
    assert "model.safetensors" not in hub.asked
