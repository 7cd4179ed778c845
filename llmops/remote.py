"""Artifacts at an fsspec URL (S3, GCS, a mounted folder ...), laid out as the local store is: `<kind>/<digest>/...`.

Moves files and lists them; what they must hold is the store's business. Files go first and the manifest last, so what
has a manifest is whole. Address and credentials come from the environment that the protocol's own library reads.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from llmops.errors import ConfigError, InvalidEvidence, LlmopsError, StoreError
from llmops.manifest import MANIFEST
from llmops.schema import short

# Here an object is there whole or not at all; elsewhere a file is written beside and moved into place.
PUT_IS_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"})


class Remote:
    """Artifacts under one URL; every method raises StoreError when the other side cannot be reached."""

    def __init__(self, url: str) -> None:
        """Open `url`; nothing is sent yet.

        Raises:
            ConfigError: no URL, of an unknown protocol, or its library is not installed.
        """
        self.url = _without_user(url.rstrip("/"))
        self._protocol = url.partition("://")[0]
        self._fs, self._root = _open(url.rstrip("/"))

    def has(self, kind: str, digest: str) -> bool:
        """Whether the artifact is there, whole."""
        with self._reaching("looking it up"):
            return bool(self._fs.exists(f"{self._root}/{kind}/{digest}/{MANIFEST}"))

    def is_there(self) -> bool:
        """Whether anything at all lies under the URL."""
        with self._reaching("looking it up"):
            return bool(self._fs.exists(self._root))

    def kinds(self) -> list[str]:
        """The kinds of which something is there."""
        with self._reaching("listing"):
            try:
                names = [str(name).rstrip("/") for name in self._fs.ls(self._root, detail=False)]
            except FileNotFoundError:
                return []
        return sorted(n for n in (PurePosixPath(name).name for name in names) if not n.startswith("."))

    def digests(self, kind: str) -> list[str]:
        """Digests of the artifacts of one kind that are whole."""
        paths = (PurePosixPath(path) for path in self._files(kind))
        return sorted(p.parts[0] for p in paths if len(p.parts) == 2 and p.name == MANIFEST)

    def sizes(self, kind: str, digest: str) -> dict[str, int]:
        """Sizes (bytes) of the artifact's files, its manifest too, by relative path; empty when it is not there."""
        return {path: int(info["size"]) for path, info in self._files(f"{kind}/{digest}").items()}

    def age_s(self, kind: str, digest: str) -> float:
        """Seconds since the artifact was written last."""
        with self._reaching("looking it up"):
            at: datetime = self._fs.modified(f"{self._root}/{kind}/{digest}/{MANIFEST}")
        return max(0.0, (datetime.now(UTC) - (at if at.tzinfo else at.replace(tzinfo=UTC))).total_seconds())

    def put(self, kind: str, digest: str, folder: Path) -> None:
        """Write the artifact in `folder`; what is there already gets its manifest again, and is young again."""
        with self._reaching("writing"):
            if self._protocol not in PUT_IS_ATOMIC and not self._fs.exists(self._root):
                raise StoreError(
                    f"store {self.url}: is not there; mount or create it"
                )  # never beside the mount
            if not self.has(kind, digest):
                self._put(kind, digest, folder, [p for p in _files_of(folder) if p != MANIFEST])
            self._put(kind, digest, folder, [MANIFEST])

    def get(self, kind: str, digest: str, folder: Path) -> bool:
        """Copy the artifact into `folder`, unchecked; False when it is not there.

        Raises:
            InvalidEvidence: its manifest names no files, or files outside the folder.
        """
        with self._reaching("reading"):
            if not self.has(kind, digest):
                return False
            self._get(kind, digest, folder, [MANIFEST])
            try:
                self._get(kind, digest, folder, _names(folder / MANIFEST))
            except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
                raise InvalidEvidence(
                    f"store: {kind} {short(digest)} at {self.url} is broken ({error}); restore it from a backup"
                ) from error
        return True

    def remove(self, kind: str, digest: str) -> None:
        """Delete the artifact, its manifest first; nothing happens when it is not there."""
        folder = f"{self._root}/{kind}/{digest}"
        with self._reaching("deleting"):
            if self.has(kind, digest):
                self._fs.rm_file(f"{folder}/{MANIFEST}")
                self._fs.invalidate_cache()
            if self._fs.exists(folder):
                self._fs.rm(folder, recursive=True)

    def _files(self, folder: str) -> Mapping[str, Mapping[str, Any]]:
        root = f"{self._root}/{folder}/"
        with self._reaching("listing"):
            try:
                found = self._fs.find(root, detail=True)
            except FileNotFoundError:
                return {}
        return {path.removeprefix(root): info for path, info in found.items() if path.startswith(root)}

    def _put(self, kind: str, digest: str, folder: Path, names: list[str]) -> None:
        sources = [str(folder / name) for name in names]
        targets = [f"{self._root}/{kind}/{digest}/{name}" for name in names]
        if self._protocol in PUT_IS_ATOMIC:
            self._fs.put(sources, targets)
            return
        for source, target in zip(sources, targets, strict=True):
            scratch = f"{self._root}/.staging/{uuid.uuid4().hex}"
            for path in (scratch, target):
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(source, scratch)
            self._fs.mv(scratch, target)

    def _get(self, kind: str, digest: str, folder: Path, names: list[str]) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        sources = [f"{self._root}/{kind}/{digest}/{name}" for name in names]
        self._fs.get(sources, [str(folder / name) for name in names])

    @contextmanager
    def _reaching(self, doing: str) -> Iterator[None]:
        self._fs.invalidate_cache()  # other machines write there too
        try:
            yield
        except LlmopsError:
            raise
        except Exception as error:  # every protocol's library has errors of its own
            said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise StoreError(
                f"store {self.url}: {doing} failed ({said}); check LLMOPS_STORE_URL, its credentials and the network, "
                "then run the same command again"
            ) from error


def _open(url: str) -> tuple[Any, str]:
    """The filesystem of a URL and the path on it."""
    from fsspec.core import url_to_fs

    protocol, separator, rest = url.partition("://")
    if not separator or not rest.strip("/"):
        raise ConfigError(
            "LLMOPS_STORE_URL: is no URL of a folder; give for example s3://bucket/prefix, or file:///folder"
        )
    try:
        fs, root = url_to_fs(url)
    except ImportError as error:
        extra = "llmops[s3]" if protocol in ("s3", "s3a") else None
        what = f"pip install '{extra}'" if extra else str(error)
        raise ConfigError(
            f"LLMOPS_STORE_URL: the library for {protocol}:// is not installed; {what}"
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"LLMOPS_STORE_URL: {protocol}:// cannot be used ({error}); give s3://bucket/prefix"
        ) from None
    except Exception as error:  # some protocols connect at once
        raise StoreError(
            f"store {_without_user(url)}: cannot be opened ({error}); check LLMOPS_STORE_URL and the network"
        ) from error
    return fs, str(root).rstrip("/")


def _without_user(url: str) -> str:
    """The URL without user and password: messages show it."""
    return re.sub(r"//[^/@]*@", "//", url)


def _files_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _names(manifest: Path) -> list[str]:
    """The files a manifest names.

    Raises:
        ValueError: one lies outside the artifact, or it is no manifest.
    """
    names = [str(file["path"]) for file in json.loads(manifest.read_bytes())["files"]]
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{name} lies outside the artifact")
    return names
