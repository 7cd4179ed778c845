"""A file that one process holds for its life, saying who it is: how a serving process is found, and ended.

The kernel's lock ends with the process however it ends; what the file says counts only while the lock is held.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmops.errors import CouldNotRun
from llmops.schema import JsonDict

_TAKE_S = 1.0  # whoever asks for the owner holds the lock for a moment
_POLL_S = 0.02


class AlreadyHeld(CouldNotRun):
    """Another process holds the file; `owner` is what it says of itself."""

    def __init__(self, path: Path, owner: JsonDict) -> None:
        """Keep what the holder wrote."""
        super().__init__(f"{path}: held by process {owner.get('pid', 'unknown')}; end that first")
        self.owner = owner


class HeldFile:
    """One such file; its folder exists."""

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened."""
        self.path = path
        self._descriptor = -1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the file, with this process's id in it, until the block ends.

        Raises:
            AlreadyHeld: another process does.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            deadline = time.monotonic() + _TAKE_S
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise AlreadyHeld(self.path, read_json(self.path) or {})
                time.sleep(_POLL_S)
            self._descriptor = descriptor
            self.tell({})
            try:
                yield
            finally:
                os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def tell(self, body: JsonDict) -> None:
        """Write what this process says of itself; its id is added."""
        data = json.dumps({"pid": os.getpid(), **body}).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, data, 0)

    def owner(self) -> JsonDict | None:
        """What the holder wrote; None when nobody holds the file."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return read_json(self.path) or {}
        finally:
            os.close(descriptor)
        return None

    def end(self, timeout_s: float) -> bool:
        """Ask the holder to end (SIGTERM) and wait for it; False when there is none.

        Raises:
            CouldNotRun: it may not be ended by this user, or is not gone in time.
        """
        owner = self.owner()
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
        while (now_owner := self.owner()) is not None and now_owner.get("pid") == pid:
            if time.monotonic() > deadline:
                raise CouldNotRun(
                    f"stop: process {pid} is still finishing requests after {timeout_s:g} s; wait, or kill it"
                )
            time.sleep(_POLL_S)
        return True


def read_json(path: Path) -> JsonDict | None:
    """The JSON object in a file; None when the file is gone, or being written."""
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
