"""A model hub on loopback: the few endpoints that huggingface_hub's upload and listing speak to."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

COMMIT = "c" * 40
TOKEN = "hf_test"


@dataclass
class Hub:
    """What the hub was given: repositories with whether they are private, files by path, large objects by sha256."""

    url: str = ""
    repos: dict[str, bool] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    tokens: set[str | None] = field(default_factory=set)
    loses: str | None = None  # a path whose content the hub spoils

    def post(self, path: str, body: Any, raw: bytes) -> Any:
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            name = f"{body.get('organization', 'me')}/{body['name']}"
            self.repos[name] = body.get("visibility") == "private" or bool(body.get("private"))
            return {"url": f"{self.url}/{name}", "name": name, "id": name}
        if "/preupload/" in path:
            mode = {True: "lfs", False: "regular"}
            files = [
                {
                    "path": f["path"],
                    "uploadMode": mode[f["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for f in body["files"]
            ]
            return {"files": files}
        if path.endswith("/info/lfs/objects/batch"):
            return {"transfer": "basic", "objects": [self._action(o) for o in body["objects"]]}
        if "/commit/" in path:
            self._commit([json.loads(line) for line in raw.decode().splitlines()])
            repo = path.removeprefix("/api/models/").rpartition("/commit/")[0]
            return {
                "commitUrl": f"{self.url}/{repo}/commit/{COMMIT}",
                "commitOid": COMMIT,
                "commitId": COMMIT,
            }
        raise KeyError(path)

    def _action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return wanted | {"actions": {"upload": {"href": f"{self.url}/put/{wanted['oid']}"}}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
                self.large.add(value["path"])
        if self.loses:
            self.files[self.loses] = self.files[self.loses][:-1]

    def tree(self) -> list[dict[str, Any]]:
        """As `/api/models/<repo>/tree/<revision>` lists it."""
        found = []
        for path, content in self.files.items():
            sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": sha1}
            if path in self.large:
                entry["lfs"] = {
                    "oid": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 134,
                }
            found.append(entry)
        return found


@contextmanager
def fake_hub() -> Iterator[Hub]:
    """A running hub; it ends with the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self._body()
            try:
                body = json.loads(raw) if raw and b"\n" not in raw.strip() else None
                self._answer(200, hub.post(self.path, body, raw))
            except KeyError as error:
                self._answer(404, {"error": str(error)})

        def do_PUT(self) -> None:
            hub.objects[self.path.rpartition("/")[2]] = self._body()
            self._answer(200, {})

        def do_GET(self) -> None:
            listing = "/tree/" in self.path
            self._answer(200 if listing else 404, hub.tree() if listing else {"error": self.path})

        def _body(self) -> bytes:
            if not self.path.startswith("/put/"):  # an upload's address carries its own right
                hub.tokens.add(self.headers.get("Authorization"))
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, code: int, value: Any) -> None:
            if hub.tokens - {f"Bearer {TOKEN}"}:
                code, value = 401, {"error": "not your token"}
            content = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
