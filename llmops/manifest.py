"""The manifest of an artifact: which files it has, their sizes and sha256; and whether a folder still agrees with it.

The digest of a file artifact is that of its manifest; the digest of a record is that of its one file. What makes a
folder durable before its manifest says that it is whole lies here too.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from llmops.errors import InvalidEvidence
from llmops.schema import JsonDict, digest_of, short

MANIFEST = "manifest.json"
RECORD = "record.json"
MANIFEST_SCHEMA = "llmops.manifest/1"
RECORD_KIND = "_record"
_CHUNK_BYTES = 1 << 20


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


def require_intact(kind: str, digest: str, folder: Path, remedy: str) -> JsonDict:
    """Read every byte of the artifact in `folder` and compare with its digest; returns its manifest.

    Args:
        kind: the store's kind; records (`..._record`) have the digest of their one file.
        digest: what the artifact is known by.
        folder: its files and its manifest.
        remedy: what the message says to do.

    Raises:
        InvalidEvidence: names the first file that is missing, extra or changed.
    """
    where = f"store: {kind} {short(digest)}"
    try:
        stored = json.loads((folder / MANIFEST).read_bytes())
        expected = {str(f["path"]): str(f["sha256"]) for f in stored["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidEvidence(f"{where}: {MANIFEST} cannot be read ({error}); {remedy}") from error
    found = {f["path"]: f["sha256"] for f in manifest_of(folder)["files"]}
    if kind.endswith(RECORD_KIND):
        expected[RECORD] = digest
    elif digest_of(stored) != digest:
        raise InvalidEvidence(f"{where}: {MANIFEST} was changed; {remedy}")
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            what = (
                "is missing" if name not in found else "is extra" if name not in expected else "was changed"
            )
            raise InvalidEvidence(f"{where}: {name} {what}; {remedy}")
    return dict(stored)


def sync_to_disk(path: Path) -> None:
    """Return once a file's bytes, or a folder's names, would outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
