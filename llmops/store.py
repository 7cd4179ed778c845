"""The content-addressed store: immutable artifacts on a local folder, found by kind and digest.

An artifact is a folder `<root>/<kind>/<digest>/` holding its files and `manifest.json` (path, size, sha256 of each).
Its digest is that of the manifest, so one changed byte is found. Writes go to a temporary folder that is fsynced and
renamed: an artifact is there whole or not at all.

With `LLMOPS_STORE_URL` the artifacts lie at that URL and the local folder is a cache of them: what is stored is written
there first; what is not in the cache is fetched, compared with its digest, and only then put in place.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from llmops.errors import InvalidEvidence, StoreError
from llmops.manifest import (
    MANIFEST,
    RECORD,
    RECORD_KIND,
    manifest_of,
    require_intact,
    sync_to_disk,
)
from llmops.remote import Remote
from llmops.schema import JsonDict, Record, canonical_json, digest_of, load_record, short
from llmops.settings import Workspace

STAGING = ".staging"

R = TypeVar("R", bound=Record)


class Store:
    """Artifacts under one local folder, or at a URL with that folder as their cache."""

    def __init__(self, root: Path, remote: Remote | None = None) -> None:
        """Use `root`, which is made on the first write."""
        self.root = root
        self.remote = remote

    @classmethod
    def of(cls, workspace: Workspace) -> Store:
        """The store of a workspace.

        Raises:
            ConfigError: LLMOPS_STORE_URL cannot be used.
        """
        url = workspace.store_url
        return cls(workspace.store_root, Remote(url) if url else None)

    def path(self, kind: str, digest: str) -> Path:
        """Folder of an artifact; one that is not in the cache is fetched and verified.

        Raises:
            InvalidEvidence: it is not in the store, or what was fetched is not what was stored.
            StoreError: the remote store cannot be reached, or the disk did not take it.
        """
        path = self._folder(kind, digest)
        if not self._cached(kind, digest) and not (self.remote and self._fetch(self.remote, kind, digest)):
            place = f"{self.root} and {self.remote.url}" if self.remote else str(self.root)
            raise InvalidEvidence(
                f"store: {kind} {short(digest)} is gone from {place}; restore it from a backup"
            )
        return path

    def has(self, kind: str, digest: str) -> bool:
        """Whether the artifact is in the store (its content is not checked)."""
        return self._cached(kind, digest) or bool(self.remote and self.remote.has(kind, digest))

    def kinds(self) -> list[str]:
        """All kinds of which something is stored, sorted."""
        local = [p.name for p in self.root.iterdir() if p.name != STAGING] if self.root.is_dir() else []
        return sorted({*local, *(self.remote.kinds() if self.remote else ())})

    def digests(self, kind: str) -> list[str]:
        """All digests of one kind, sorted; those in the cache alone too."""
        folder = self.root / kind
        local = [p.name for p in folder.iterdir() if (p / MANIFEST).is_file()] if folder.is_dir() else []
        return sorted({*local, *(self.remote.digests(kind) if self.remote else ())})

    def size_bytes(self, kind: str, digest: str) -> int:
        """Bytes of the artifact's files and manifest.

        Raises:
            InvalidEvidence: it is not in the store.
        """
        if self.remote and not self._cached(kind, digest):
            sizes = self.remote.sizes(kind, digest)
            if MANIFEST in sizes:
                return sum(sizes.values())
        return sum(p.stat().st_size for p in self.path(kind, digest).rglob("*") if p.is_file())

    def age_s(self, kind: str, digest: str) -> float:
        """Seconds since the artifact was stored last; storing the same content again makes it young.

        Raises:
            InvalidEvidence: it is not in the store.
        """
        if self.remote and self.remote.has(kind, digest):
            return self.remote.age_s(kind, digest)
        return max(0.0, time.time() - (self.path(kind, digest) / MANIFEST).stat().st_mtime)

    def remove(self, kind: str, digest: str) -> None:
        """Delete the artifact, from the remote store too; nothing happens when it is not there.

        Raises:
            StoreError: it could not be deleted.
        """
        if self.remote:
            self.remote.remove(kind, digest)
        if (folder := self._folder(kind, digest)).exists():
            with self._staging(kind) as stage:
                folder.rename(stage / digest)  # gone in one step, then deleted with the staging folder

    def put_files(self, kind: str, files: Mapping[str, bytes]) -> str:
        """Store files given by relative path and bytes; returns the artifact's digest.

        Raises:
            StoreError: the disk or the remote store did not take it; nothing is left behind.
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
            StoreError: the disk or the remote store did not take it; nothing is left behind.
        """
        with self._staging(kind) as stage:
            shutil.copytree(source, stage, dirs_exist_ok=True)
            return self._commit(kind, stage)

    def put_built(self, kind: str, build: Callable[[Path], None]) -> str:
        """Store what `build` writes into the folder that it is given; returns the artifact's digest.

        Raises:
            StoreError: the disk or the remote store did not take it; nothing is left behind.
        """
        with self._staging(kind) as stage:
            build(stage)
            return self._commit(kind, stage)

    def put_record(self, record: Record) -> str:
        """Store a record under the kind its schema names (`llmops.report/1` -> `report_record`); returns its digest.

        Raises:
            StoreError: the disk or the remote store did not take it; nothing is left behind.
        """
        kind = kind_of(type(record))
        with self._staging(kind) as stage:
            (stage / RECORD).write_bytes(canonical_json(record.to_dict()))
            return self._commit(kind, stage, name=record.digest())

    def get_record(self, cls: type[R], digest: str) -> R:
        """The record stored under `digest`, verified.

        Raises:
            InvalidEvidence: it is missing, altered, or of an unknown schema version.
            StoreError: the remote store cannot be reached.
        """
        kind = kind_of(cls)
        path = self.path(kind, digest) / RECORD
        try:
            record = load_record(cls, json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise InvalidEvidence(
                f"store: {kind} {short(digest)} cannot be read ({error}); {self._remedy(kind, digest)}"
            ) from error
        if record.digest() != digest:
            raise InvalidEvidence(
                f"store: {kind} {short(digest)} was changed after it was stored; {self._remedy(kind, digest)}"
            )
        return record

    def verify(self, kind: str, digest: str) -> Path:
        """Read every byte of an artifact and compare with its digest; returns its folder.

        Of the remote copy the presence and sizes of the files are compared.

        Raises:
            InvalidEvidence: names the first file that is missing, extra or changed.
            StoreError: the remote store cannot be reached.
        """
        path = self.path(kind, digest)
        manifest = require_intact(kind, digest, path, self._remedy(kind, digest))
        if self.remote:
            self._require_remote(self.remote, kind, digest, manifest)
        return path

    # ------------------------------------------------------------ the remote copy

    def _fetch(self, remote: Remote, kind: str, digest: str) -> bool:
        """Bring an artifact into the cache after comparing every byte with its digest; False when it is not there."""
        path = self._folder(kind, digest)
        if path.exists():  # a damaged copy is somebody's to look at: never replaced in silence
            raise InvalidEvidence(
                f"store: {kind} {short(digest)}: {MANIFEST} is missing; {self._remedy(kind, digest)}"
            )
        with self._staging(kind) as stage:
            if not remote.get(kind, digest, stage):
                if not remote.is_there():
                    raise StoreError(
                        f"store {remote.url}: is empty or not there; check LLMOPS_STORE_URL, or mount or create it"
                    )
                return False
            require_intact(
                kind, digest, stage, f"the copy at {remote.url} was changed, restore it from a backup"
            )
            self._place(kind, digest, stage)
        return True

    def _require_remote(self, remote: Remote, kind: str, digest: str, manifest: JsonDict) -> None:
        found = remote.sizes(kind, digest)
        expected = {str(f["path"]): int(f["size"]) for f in manifest["files"]}
        expected[MANIFEST] = len(canonical_json(manifest))
        for name, size in expected.items():
            if found.get(name) != size:
                what = "was changed" if name in found else "is missing"
                raise InvalidEvidence(
                    f"store: {kind} {short(digest)}: {name} {what} at {remote.url}; copy "
                    f"{self._folder(kind, digest)} to {remote.url}/{kind}/{digest}, or restore it from a backup"
                )

    def _remedy(self, kind: str, digest: str) -> str:
        if self.remote is None:
            return "restore the artifact"
        return (
            f"find out why, then delete {self._folder(kind, digest)} to fetch it again from {self.remote.url}"
        )

    # ------------------------------------------------------------ the local folder

    def _folder(self, kind: str, digest: str) -> Path:
        return self.root / kind / digest

    def _cached(self, kind: str, digest: str) -> bool:
        return (self._folder(kind, digest) / MANIFEST).is_file()

    @contextmanager
    def _staging(self, kind: str) -> Iterator[Path]:
        """A temporary folder beside the artifacts of a kind; removed again when the block fails."""
        stage = self.root / STAGING / uuid.uuid4().hex
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
        """Write the manifest and put the artifact in place: at the remote store first, then in the local folder."""
        manifest = manifest_of(stage)
        digest = name or digest_of(manifest)
        (stage / MANIFEST).write_bytes(canonical_json(manifest))
        if self.remote:
            self.remote.put(kind, digest, stage)
        self._place(kind, digest, stage)
        return digest

    def _place(self, kind: str, digest: str, stage: Path) -> None:
        """Make the staged files durable and read-only, and rename their folder into place."""
        target = self._folder(kind, digest)
        if self._cached(kind, digest):
            with suppress(OSError):  # another user's file keeps its age
                os.utime(target / MANIFEST)
            return
        for path in stage.rglob("*"):
            if path.is_file():
                path.chmod(0o444)
                sync_to_disk(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            stage.rename(target)
        except OSError:
            if not self._cached(kind, digest):  # else another process stored the same content first
                raise
        sync_to_disk(target.parent)


def kind_of(cls: type[Record]) -> str:
    """The store's kind of a record class: the middle of its schema."""
    return f"{cls.schema.removeprefix('llmops.').split('/')[0]}{RECORD_KIND}"
