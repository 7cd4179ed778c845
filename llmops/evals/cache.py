"""Answers that were given before: found again when everything that could change them is the same.

One SQLite file a workspace, `.llmops/answers.db`; several processes may use it at once, and it may be deleted at any
time. An answer's key is the digest of model, prompt contract, engine signature, decoding with its seed, case, sample,
and whether the reference's log-probability was asked for too.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from llmops.engines.completions import completion_line, read_completions
from llmops.engines.decoding import Decoding
from llmops.engines.endpoint import System
from llmops.errors import InvalidEvidence, StoreError
from llmops.records import Case, Completion
from llmops.schema import digest_of
from llmops.settings import Workspace

CACHE_FILE = "answers.db"
BUSY_S = 30.0
AT_ONCE = 500  # keys in one query


@dataclass(frozen=True)
class Setting:
    """What the answers of one system to one suite have in common; `engine` is the digest of the engine's signature."""

    system: System
    engine: str
    decoding: Decoding
    with_reference: bool

    def key(self, case: Case, sample: int) -> str:
        """Under which the answer to a case is kept."""
        return hashlib.sha256(f"{self._digest}:{case.digest}:{sample}".encode()).hexdigest()

    @cached_property
    def _digest(self) -> str:
        return digest_of(
            {
                "model": self.system.digest,
                "prompt_contract": self.system.prompt_contract,
                "engine": self.engine,
                "decoding": self.decoding.model_dump(mode="json"),
                "with_reference": self.with_reference,
            }
        )


class AnswerCache:
    """The answers of a workspace, each under its key."""

    def __init__(self, path: Path) -> None:
        """Use the file at `path`, made on first use.

        Raises:
            StoreError: it cannot be written, or is no such file.
        """
        self._path = path
        with self._open() as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, sum TEXT, line BLOB) WITHOUT ROWID"
            )

    @classmethod
    def of(cls, workspace: Workspace) -> AnswerCache:
        """The workspace's own."""
        return cls(workspace.state / CACHE_FILE)

    def get(self, keys: Sequence[str]) -> dict[str, Completion]:
        """The answers that are there, marked as cached; one whose bytes were damaged is not."""
        found = {}
        with self._open() as db:
            for start in range(0, len(keys), AT_ONCE):
                part = keys[start : start + AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, sum, line FROM answers WHERE key IN ({marks})"
                for key, total, line in db.execute(query, part):
                    answer = _read(total, line)
                    if answer is not None:
                        found[key] = answer
        return found

    def put(self, answers: Sequence[tuple[str, Completion]]) -> None:
        """Keep answers; the newest under a key stays."""
        rows = []
        for key, completion in answers:
            line = completion_line(completion)
            rows.append((key, _sum(line), line))
        with self._open() as db:
            db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=BUSY_S)) as db, db:
                yield db
        except sqlite3.Error as error:
            raise StoreError(
                f"{self._path}: cannot be used ({error}); delete it, or evaluate with --no-cache"
            ) from error


def _sum(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _read(total: object, line: object) -> Completion | None:
    if not isinstance(line, bytes) or _sum(line) != total:
        return None
    try:
        (completion,) = read_completions(line, CACHE_FILE)
    except (InvalidEvidence, ValueError):  # of a version that kept other fields
        return None
    return replace(completion, cached=True)
