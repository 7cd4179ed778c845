"""One serve a workspace and database: locks held for the process's life, and what a running one says of itself.

The kernel's lock on `.llmops/serve.lock` ends with the process however it ends; the file holds pid and
address of whoever has it. `.llmops/serve.json` is there while completions are answered. Without the lock
held, neither file says anything. Workspaces on other machines may share a PostgreSQL database: there the
database holds a second lock, and one serve answers for all of them.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmops.db import open_database, serving_alone
from llmops.errors import CouldNotRun
from llmops.records import EngineSignature
from llmops.schema import JsonDict
from llmops.settings import Workspace, now

LOCK_FILE = "serve.lock"
STOP_TIMEOUT_S = 180.0
_TAKE_S = 1.0  # whoever asks for the owner holds the lock for a moment
_POLL_S = 0.02


@dataclass(frozen=True)
class Running:
    """A serve that answers: its process, address and engine."""

    pid: int
    url: str
    engine: EngineSignature
    started_at: str


@contextmanager
def serve_lock(workspace: Workspace) -> Iterator[int]:
    """Hold the workspace's lock, and its database's; gives the lock file's descriptor for `tell_owner`.

    Raises:
        CouldNotRun: another serve holds one of them; names its pid, and its address or machine.
    """
    descriptor = os.open(_lock_path(workspace), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + _TAKE_S
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise CouldNotRun(_already(workspace))
            time.sleep(_POLL_S)
        workspace.serve_file.unlink(missing_ok=True)  # left by one that was killed
        tell_owner(descriptor, "")
        try:
            with _database_lock(workspace):
                yield descriptor
        finally:
            workspace.serve_file.unlink(missing_ok=True)
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def tell_owner(descriptor: int, url: str) -> None:
    """Write this process and its address into the lock file."""
    data = json.dumps({"pid": os.getpid(), "url": url}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, data, 0)


def announce_running(workspace: Workspace, url: str, engine: EngineSignature) -> None:
    """Write serve.json, whole or not at all: completions are answered at `url`."""
    body = {"pid": os.getpid(), "url": url, "engine": engine.to_pairs(), "started_at": now()}
    scratch = workspace.serve_file.with_suffix(".json.new")
    scratch.write_text(json.dumps(body, indent=1) + "\n")
    scratch.replace(workspace.serve_file)


def running(workspace: Workspace) -> Running | None:
    """The serve of a workspace that answers now; None while there is none, or it is still starting."""
    body = _read(workspace.serve_file)
    owner = _owner(workspace) if body else None
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
    owner = _owner(workspace)
    if owner is None or "pid" not in owner:
        return False
    pid = int(owner["pid"])
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    except PermissionError:
        raise CouldNotRun(f"stop: process {pid} belongs to another user; stop it as that user") from None
    deadline = time.monotonic() + timeout_s
    while (now_owner := _owner(workspace)) is not None and now_owner.get("pid") == pid:
        if time.monotonic() > deadline:
            raise CouldNotRun(
                f"stop: process {pid} is still finishing requests after {timeout_s:g} s; wait, or kill it"
            )
        time.sleep(_POLL_S)
    return True


def _lock_path(workspace: Workspace) -> Path:
    return workspace.state / LOCK_FILE


@contextmanager
def _database_lock(workspace: Workspace) -> Iterator[None]:
    """Hold the serve lock of a database that other workspaces may share; a file of this workspace needs none."""
    if not workspace.database_url.startswith("postgresql"):
        yield
        return
    called = "llmops serve: "
    me = f"{called}process {os.getpid()} on {socket.gethostname()}"
    with serving_alone(open_database(workspace.database_url), me) as holder:
        if holder is not None:
            raise CouldNotRun(
                f"serve: {holder.removeprefix(called)} serves this workspace's database already; "
                "use it, or end it with `llmops stop` there"
            )
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(workspace: Workspace) -> JsonDict | None:
    """What the lock's holder wrote; None when nobody holds it."""
    try:
        descriptor = os.open(_lock_path(workspace), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(_lock_path(workspace)) or {}
    finally:
        os.close(descriptor)
    return None


def _already(workspace: Workspace) -> str:
    owner = _read(_lock_path(workspace)) or {}
    where = f" at {owner['url']}" if owner.get("url") else ""
    pid = owner.get("pid", "unknown")
    return f"serve: process {pid} serves this workspace already{where}; use it, or end it with `llmops stop`"


def _read(path: Path) -> JsonDict | None:
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None
