"""Evaluation sessions: folders `.llmops/runs/<session>/` that keep completions before they are scored.

`session.json` says what is being evaluated; a suite's completions file grows by one line an answer, made durable in
batches. A killed session goes on where it stopped: only what has no answer is asked again.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from llmops.engines.completions import COMPLETIONS_FILE, completion_line, read_completions
from llmops.errors import BadRequest, StoreError
from llmops.evals.suite import Suite
from llmops.records import Completion, EngineSignature
from llmops.schema import Record, canonical_json, load_record
from llmops.settings import Workspace, now

SESSION_FILE = "session.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")


@dataclass(frozen=True)
class SessionSuite:
    """A suite of a session: its digest, and its file (absolute, or relative to the workspace)."""

    name: str
    digest: str
    path: str


@dataclass(frozen=True)
class SessionRecord(Record):
    """What a session evaluates, fixed when it begins."""

    schema: ClassVar[str] = "llmops.eval_session/2"
    session: str
    suites: tuple[SessionSuite, ...]
    engine: EngineSignature
    created_at: str


class Session:
    """One session's folder. A suite's answers are found by (case digest, system, sample)."""

    def __init__(self, folder: Path) -> None:
        """Use a folder that `new_session` or `find_session` gave."""
        self.folder = folder
        self.name = folder.name
        self._record: SessionRecord | None = None

    def record(self) -> SessionRecord:
        """What was written down when the session began."""
        if self._record is None:
            data = json.loads((self.folder / SESSION_FILE).read_bytes())
            self._record = load_record(SessionRecord, data)
        return self._record

    def begin(self, suites: Sequence[SessionSuite], engine: EngineSignature) -> SessionRecord:
        """Write down what the session evaluates, or check that a resumed one evaluates the same suites.

        Raises:
            BadRequest: the session belongs to other suites, or to an earlier state of one.
        """
        path = self.folder / SESSION_FILE
        if not path.is_file():
            record = SessionRecord(self.name, tuple(suites), engine, now())
            path.write_bytes(canonical_json(record.to_dict()) + b"\n")
            return record
        record = self.record()
        begun = {s.name: s.digest for s in record.suites}
        if begun.keys() != {s.name for s in suites}:
            raise BadRequest(
                f"session {self.name}: was begun on {', '.join(begun)}; name the same suites, "
                "or evaluate without --resume"
            )
        changed = next((s.name for s in suites if begun[s.name] != s.digest), None)
        if changed:
            raise BadRequest(
                f"session {self.name}: was begun on another state of suite {changed}; evaluate without --resume"
            )
        return record

    def file_of(self, suite: Suite) -> Path:
        """Where a suite's completions lie: `completions.jsonl`, and of several suites one file each."""
        alone = len(self.record().suites) == 1
        return self.folder / (COMPLETIONS_FILE if alone else f"{suite.config.name}.{COMPLETIONS_FILE}")

    def completions(self, suite: Suite) -> dict[tuple[str, str, int], Completion]:
        """All that was kept of a suite, the last word on each case; a line cut off by a crash is taken away.

        Raises:
            InvalidEvidence: a line is damaged.
        """
        path = self.file_of(suite)
        if not path.is_file():
            return {}
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            os.truncate(path, len(whole))
        return {(c.case, c.system, c.sample): c for c in read_completions(whole, f"session {self.name}")}

    def append(self, suite: Suite, batch: Sequence[Completion]) -> None:
        """Add completions to a suite's file; durable when this returns.

        Raises:
            StoreError: the disk did not take them.
        """
        try:
            with self.file_of(suite).open("ab") as file:
                file.write(b"".join(map(completion_line, batch)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(
                f"session {self.name}: completions could not be written ({error.strerror}); "
                f"free space, then run `llmops eval` with --resume {self.name}"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the session, so that two processes never work on it at once.

        Raises:
            BadRequest: another process does.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BadRequest(f"session {self.name}: another process works on it; wait for it") from None
        try:
            yield
        finally:
            lock.release()


def new_session(workspace: Workspace, kind: str = "eval") -> Session:
    """A session with a new name, which begins with its kind, and an empty folder."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = workspace.runs / f"{kind}-{stamp}-{secrets.token_hex(3)}"
    folder.mkdir(parents=True)
    return Session(folder)


def find_session(workspace: Workspace, name: str) -> Session:
    """A session that was begun before.

    Raises:
        BadRequest: there is none of that name.
    """
    folder = workspace.runs / name
    if not _NAME.fullmatch(name) or not (folder / SESSION_FILE).is_file():
        known = sorted(path.parent.name for path in workspace.runs.glob(f"*/{SESSION_FILE}"))
        newest = f"; newest is {known[-1]}" if known else ""
        raise BadRequest(f"session {name}: no such evaluation session{newest}")
    return Session(folder)
