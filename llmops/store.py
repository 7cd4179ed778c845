"""The content-addressed store: immutable artifacts on a local folder, found by kind and digest.

An artifact is a folder `<root>/<kind>/<digest>/` holding its files and `manifest.json` (path, size, sha256 of each).
Its digest is that of the manifest, so one changed byte is found. Writes go to a temporary folder that is fsynced and
renamed: an artifact is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from llmops.errors import InvalidEvidence, StoreError
from llmops.schema import JsonDict, Record, canonical_json, digest_of, load_record, short

MANIFEST = "manifest.json"
RECORD = "record.json"
MANIFEST_SCHEMA = "llmops.manifest/1"
_CHUNK_BYTES = 1 << 20

R = TypeVar("R", bound=Record)


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def manifest_of(folder: Path) -> JsonDict:
    """The manifest of a folder's files: sorted relative paths, sizes, sha256; the manifest file itself left out."""
    files = [
        {
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    ]
    return {"schema": MANIFEST_SCHEMA, "files": sorted(files, key=lambda f: str(f["path"]))}


class Store:
    """Artifacts under one local folder."""

    def __init__(self, root: Path) -> None:
        """Use `root`, which is made on the first write."""
        self.root = root

    def path(self, kind: str, digest: str) -> Path:
        """Folder of an artifact.

        Raises:
            InvalidEvidence: it is not in the store.
        """
        path = self.root / kind / digest
        if not (path / MANIFEST).is_file():
            raise InvalidEvidence(
                f"store: {kind} {short(digest)} is gone from {self.root}; restore it from a backup"
            )
        return path

    def has(self, kind: str, digest: str) -> bool:
        """Whether the artifact is in the store (its content is not checked)."""
        return (self.root / kind / digest / MANIFEST).is_file()

    def digests(self, kind: str) -> list[str]:
        """All digests of one kind, sorted."""
        folder = self.root / kind
        return sorted(p.name for p in folder.iterdir() if (p / MANIFEST).is_file()) if folder.is_dir() else []

    def put_files(self, kind: str, files: Mapping[str, bytes]) -> str:
        """Store files given by relative path and bytes; returns the artifact's digest.

        Raises:
            StoreError: the disk did not take it; nothing is left behind.
        """
        with self._staging(kind) as stage:
            for name, content in files.items():
                target = stage / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            return self._commit(kind, stage)

    def put_folder(self, kind: str, source: Path) -> str:
        """Store a copy of every file under `source`; returns the artifact's digest.

        Raises:
            StoreError: the disk did not take it; nothing is left behind.
        """
        with self._staging(kind) as stage:
            shutil.copytree(source, stage, dirs_exist_ok=True)
            return self._commit(kind, stage)

    def put_record(self, record: Record) -> str:
        """Store a record under the kind its schema names (`llmops.report/1` -> `report`); returns `record.digest()`."""
        kind, digest = kind_of(type(record)), record.digest()
        if not self.has(kind, digest):
            with self._staging(kind) as stage:
                (stage / RECORD).write_bytes(canonical_json(record.to_dict()))
                self._commit(kind, stage, name=digest)
        return digest

    def get_record(self, cls: type[R], digest: str) -> R:
        """The record stored under `digest`, verified.

        Raises:
            InvalidEvidence: it is missing, altered, or of an unknown schema version.
        """
        kind = kind_of(cls)
        path = self.path(kind, digest) / RECORD
        try:
            record = load_record(cls, json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise InvalidEvidence(
                f"store: {kind} {short(digest)} cannot be read ({error}); restore it"
            ) from error
        if record.digest() != digest:
            raise InvalidEvidence(
                f"store: {kind} {short(digest)} was changed after it was stored; restore it"
            )
        return record

    def verify(self, kind: str, digest: str) -> Path:
        """Read every byte of a file artifact and compare with its digest; returns its folder.

        Raises:
            InvalidEvidence: names the first file that is missing, extra or changed.
        """
        path = self.path(kind, digest)
        stored = json.loads((path / MANIFEST).read_bytes())
        if digest_of(stored) != digest:
            raise InvalidEvidence(
                f"store: {kind} {short(digest)}: {MANIFEST} was changed; restore the artifact"
            )
        expected = {f["path"]: f["sha256"] for f in stored["files"]}
        found = {f["path"]: f["sha256"] for f in manifest_of(path)["files"]}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                what = (
                    "is missing"
                    if name not in found
                    else "is extra"
                    if name not in expected
                    else "was changed"
                )
                raise InvalidEvidence(f"store: {kind} {short(digest)}: {name} {what}; restore the artifact")
        return path

    @contextmanager
    def _staging(self, kind: str) -> Iterator[Path]:
        """A temporary folder beside the artifacts of a kind; removed again when the block fails."""
        stage = self.root / ".staging" / uuid.uuid4().hex
        try:
            stage.mkdir(parents=True)
            yield stage
        except OSError as error:
            raise StoreError(
                f"store: {kind} could not be written under {self.root} ({error.strerror or error}); free space or fix "
                "permissions, then run the same command again"
            ) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _commit(self, kind: str, stage: Path, name: str | None = None) -> str:
        """Write the manifest, make the staged files durable and read-only, and rename them into place."""
        manifest = manifest_of(stage)
        digest = name or digest_of(manifest)
        target = self.root / kind / digest
        if (target / MANIFEST).is_file():
            return digest
        (stage / MANIFEST).write_bytes(canonical_json(manifest))
        for path in stage.rglob("*"):
            if path.is_file():
                path.chmod(0o444)
                _fsync(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            stage.rename(target)
        except OSError:
            if not (target / MANIFEST).is_file():  # else another process stored the same content first
                raise
        _fsync(target.parent)
        return digest


def kind_of(cls: type[Record]) -> str:
    """The store's kind of a record class: the middle of its schema."""
    return f"{cls.schema.removeprefix('llmops.').split('/')[0]}_record"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
