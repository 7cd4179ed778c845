"""Judgements as they are kept: a canonical line each, durable before any is counted, read back to go on from.

While a session is judged they grow in its folder, one file a judge; what is finished is stored (kind `judgements`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llmops.errors import InvalidEvidence, StoreError
from llmops.records import Judgement
from llmops.schema import canonical_json
from llmops.store import Store

JUDGEMENTS_FILE = "judgements.jsonl"

Key = tuple[str, tuple[str, ...], int, str]
"""Case, the systems in the order they were shown, repeat, and the digest of what was sent."""


def key_of(judgement: Judgement) -> Key:
    """What a judgement is found by."""
    return judgement.case, judgement.shown, judgement.repeat, judgement.prompt


def put_judgements(store: Store, judgements: Sequence[Judgement]) -> str:
    """Freeze judgements in their order; returns the digest of the stored files."""
    return store.put_files("judgements", {JUDGEMENTS_FILE: b"".join(map(_line, judgements))})


def load_judgements(store: Store, digest: str) -> list[Judgement]:
    """Stored judgements, after every byte was compared with its digest.

    Raises:
        InvalidEvidence: they are gone or altered.
    """
    folder = store.verify("judgements", digest)
    return _read((folder / JUDGEMENTS_FILE).read_bytes(), f"judgements {digest[:12]}")


class JudgementFile:
    """A growing file of judgements; the newest of a key counts. One process at a time holds it."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a last line that was cut off by a crash is removed.

        Raises:
            InvalidEvidence: a line is damaged.
        """
        self.path = path
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            os.truncate(path, len(whole))
        self.found = {key_of(judgement): judgement for judgement in _read(whole, str(path.name))}

    def add(self, judgement: Judgement) -> None:
        """Keep a judgement; durable when this returns.

        Raises:
            StoreError: the disk did not take it.
        """
        try:
            with self.path.open("ab") as file:
                file.write(_line(judgement))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(
                f"{self.path}: a judgement could not be written ({error.strerror}); free space, then judge again: "
                "what is there is not asked again"
            ) from error
        self.found[key_of(judgement)] = judgement


def _line(judgement: Judgement) -> bytes:
    return canonical_json(asdict(judgement)) + b"\n"


def _read(content: bytes, where: str) -> list[Judgement]:
    found = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            data = json.loads(line)
            found.append(Judgement(**data | {"shown": tuple(data["shown"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidEvidence(f"{where}:{number}: is damaged ({error}); judge again") from None
    return found
