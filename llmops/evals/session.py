"""Evaluation sessions: folders `.llmops/runs/<session>/` that keep completions before they are scored.

`session.json` says what is being evaluated; `completions.jsonl` grows by one line an answer, made durable in
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
from llmops.records import Completion, EngineSignature
from llmops.schema import Record, canonical_json, load_record
from llmops.settings import Workspace, now

SESSION_FILE = "session.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")


@dataclass(frozen=True)
class SessionRecord(Record):
    """What a session evaluates, fixed when it begins."""

    schema: ClassVar[str] = "llmops.eval_session/1"
    session: str
    suite: str
    suite_digest: str
    engine: EngineSignature
    created_at: str


class Session:
    """One session's folder. Answers are found by (case digest, system, sample)."""

    def __init__(self, folder: Path) -> None:
        """Use a folder that `new_session` or `find_session` gave."""
        self.folder = folder
        self.name = folder.name

    def begin(self, suite: str, suite_digest: str, engine: EngineSignature) -> SessionRecord:
        """Write down what the session evaluates, or check that a resumed one evaluates the same suite.

        Raises:
            BadRequest: the session belongs to another suite, or to an earlier state of it.
        """
        path = self.folder / SESSION_FILE
        if not path.is_file():
            record = SessionRecord(self.name, suite, suite_digest, engine, now())
            path.write_bytes(canonical_json(record.to_dict()) + b"\n")
            return record
        record = load_record(SessionRecord, json.loads(path.read_bytes()))
        if record.suite_digest != suite_digest:
            raise BadRequest(
                f"session {self.name}: was begun on another state of suite {record.suite}; "
                "evaluate without --resume"
            )
        return record

    def completions(self) -> dict[tuple[str, str, int], Completion]:
        """The newest completion of each (case, system, sample); a last line that was cut off by a crash is removed.

        Raises:
            InvalidEvidence: a line is damaged.
        """
        path = self.folder / COMPLETIONS_FILE
        if not path.is_file():
            return {}
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            os.truncate(path, len(whole))
        return {(c.case, c.system, c.sample): c for c in read_completions(whole, f"session {self.name}")}

    def append(self, batch: Sequence[Completion]) -> None:
        """Add completions; durable when this returns.

        Raises:
            StoreError: the disk did not take them.
        """
        try:
            with (self.folder / COMPLETIONS_FILE).open("ab") as file:
                file.write(b"".join(completion_line(c) for c in batch))
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


def new_session(workspace: Workspace) -> Session:
    """A session with a new name and an empty folder."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = workspace.runs / f"eval-{stamp}-{secrets.token_hex(3)}"
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
