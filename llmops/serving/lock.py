"""One serve a workspace: a lock held for the process's life, and what a running one says of itself.

The kernel's lock on `.llmops/serve.lock` ends with the process however it ends; the file holds pid and
address of whoever has it. `.llmops/serve.json` is there while completions are answered. Without the lock
held, neither file says anything. Workspaces may share a PostgreSQL database: which of their serves leads is
settled by `llmops.serving.seat`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llmops.errors import CouldNotRun
from llmops.holder import AlreadyHeld, HeldFile, read_json
from llmops.records import EngineSignature
from llmops.schema import JsonDict
from llmops.settings import Workspace, now

LOCK_FILE = "serve.lock"
STOP_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Running:
    """A serve that answers: its process, address and engine."""

    pid: int
    url: str
    engine: EngineSignature
    started_at: str


@contextmanager
def serve_lock(workspace: Workspace) -> Iterator[HeldFile]:
    """Hold the workspace's lock; gives the lock file for `tell_owner`.

    Raises:
        CouldNotRun: another serve holds it; names its pid and address.
    """
    lock = _lock(workspace)
    try:
        with lock.held():
            workspace.serve_file.unlink(missing_ok=True)  # left by one that was killed
            try:
                yield lock
            finally:
                workspace.serve_file.unlink(missing_ok=True)
    except AlreadyHeld as error:
        raise CouldNotRun(_already(error.owner)) from None


def tell_owner(lock: HeldFile, url: str) -> None:
    """Write this process and its address into the lock file."""
    lock.tell({"url": url})


def announce_running(workspace: Workspace, url: str, engine: EngineSignature) -> None:
    """Write serve.json, whole or not at all: completions are answered at `url`."""
    body = {"pid": os.getpid(), "url": url, "engine": engine.to_pairs(), "started_at": now()}
    scratch = workspace.serve_file.with_suffix(".json.new")
    scratch.write_text(json.dumps(body, indent=1) + "\n")
    scratch.replace(workspace.serve_file)


def running(workspace: Workspace) -> Running | None:
    """The serve of a workspace that answers now; None while there is none, or it is still starting."""
    body = read_json(workspace.serve_file)
    owner = _lock(workspace).owner() if body else None
    if not body or owner is None or owner.get("pid") != body["pid"]:
        return None
    return Running(
        int(body["pid"]), str(body["url"]), EngineSignature(**body["engine"]), str(body["started_at"])
    )


def stop(workspace: Workspace, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """End the workspace's serve and wait for it; False when there is none.

    Raises:
        CouldNotRun: it may not be ended by this user, or is not gone in time.
    """
    return _lock(workspace).end(timeout_s)


def _lock(workspace: Workspace) -> HeldFile:
    return HeldFile(workspace.state / LOCK_FILE)


def _already(owner: JsonDict) -> str:
    where = f" at {owner['url']}" if owner.get("url") else ""
    pid = owner.get("pid", "unknown")
    return f"serve: process {pid} serves this workspace already{where}; use it, or end it with `llmops stop`"
