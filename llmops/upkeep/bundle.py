"""A backup's file: a tar whose last member lists every other with its size and sha256, under its own digest's name.

Written beside its place, made durable, then renamed. Read once, front to back; what comes out of it has been compared
with the list. Knows nothing of what the members mean.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import re
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from llmops.errors import BadRequest, InvalidEvidence, StoreError
from llmops.manifest import sync_to_disk
from llmops.schema import JsonDict, canonical_json, digest_of

SCHEMA = "llmops.backup/1"
SUFFIXES = {".tar": "w", ".tar.gz": "w:gz"}
_MANIFEST = re.compile(r"manifest-([0-9a-f]{64})\.json")
_CHUNK_BYTES = 1 << 20
_ADVICE = "take another backup"


class BundleWriter:
    """Adds members to a bundle and remembers what they held."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        """Write to an open tar."""
        self._tar = tar
        self._members: list[JsonDict] = []

    def add(self, name: str, path: Path) -> None:
        """Add a file as it is now; one that grows meanwhile is cut where it ended when it was opened."""
        with path.open("rb") as file:
            self._write(name, file, os.fstat(file.fileno()).st_size)

    def finish(self, fields: JsonDict) -> str:
        """Write the list of members with further fields; returns its digest. Nothing may be added behind it."""
        body = {"schema": SCHEMA, **fields, "members": sorted(self._members, key=lambda m: str(m["path"]))}
        content = canonical_json(body)
        digest = digest_of(body)
        self._write(f"manifest-{digest}.json", io.BytesIO(content), len(content))
        return digest

    def _write(self, name: str, file: IO[bytes], size: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o644, int(time.time())
        reader = _Hashing(file)
        self._tar.addfile(info, reader)
        self._members.append({"path": name, "size": size, "sha256": reader.hexdigest()})


@contextmanager
def writing_bundle(target: Path) -> Iterator[BundleWriter]:
    """A new bundle at `target`, which appears when the block ends, durable; nothing is left when it fails.

    Raises:
        BadRequest: there is something already, or the name does not say the format.
        StoreError: the disk did not take it.
    """
    mode = next((mode for suffix, mode in SUFFIXES.items() if target.name.endswith(suffix)), None)
    if mode is None:
        raise BadRequest(f"{target}: the name does not say the format; end it with {' or '.join(SUFFIXES)}")
    if target.exists() or target.is_symlink():
        raise BadRequest(f"{target}: is there already; give another name, nothing is ever overwritten")
    try:
        # Only its owner may read it, as mkstemp makes it: it holds prompts, answers and raters' names.
        descriptor, partial = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                with _new_tar(file, mode) as tar:
                    yield BundleWriter(tar)
                file.flush()
                os.fsync(file.fileno())
            Path(partial).rename(target)
            sync_to_disk(target.parent)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"{target}: cannot be written ({error.strerror or error}); free space or fix permissions"
        ) from error


def _new_tar(file: IO[bytes], mode: str) -> tarfile.TarFile:
    if mode == "w:gz":
        return tarfile.open(
            fileobj=file, mode="w:gz", compresslevel=1
        )  # most of it, weights, does not get smaller
    return tarfile.open(fileobj=file, mode="w")


def read_bundle(source: Path, folder: Path) -> tuple[str, JsonDict]:
    """Put every member under `folder` and compare it with the list; returns the list's digest and its content.

    Raises:
        BadRequest: there is no such file.
        InvalidEvidence: names the first member that was changed, cut off, is missing or extra, or may not be there.
        OSError: the disk did not take it.
    """
    if not source.is_file():
        raise BadRequest(f"{source}: {'is no file' if source.exists() else 'no such file'}; give a backup")
    if not os.access(source, os.R_OK):
        raise BadRequest(f"{source}: may not be read; fix its permissions")
    found: dict[str, JsonDict] = {}
    last, digest = "its beginning", None
    with _reading(source, last):
        tar = tarfile.open(source, "r:*")  # noqa: SIM115 - the block below must not take the disk's errors for its own
    with tar:
        while True:
            with _reading(source, f"what follows {last}"):
                info = tar.next()
            if info is None:
                break
            if digest is not None:
                raise InvalidEvidence(
                    f"{source}: {info.name} is extra, behind the list of members; {_ADVICE}"
                )
            match = _MANIFEST.fullmatch(info.name)
            digest = match[1] if match else None
            found[info.name] = _extract(tar, info, source, folder)
            last = info.name
    if digest is None:
        raise InvalidEvidence(f"{source}: ends after {last}; it was cut off or damaged there, {_ADVICE}")
    return digest, _checked(source, folder, f"manifest-{digest}.json", found)


def _extract(tar: tarfile.TarFile, info: tarfile.TarInfo, source: Path, folder: Path) -> JsonDict:
    """Write one member to its place under `folder`, reading it once."""
    path = folder / info.name
    if not _is_plain(info, folder) or path.exists():
        raise InvalidEvidence(
            f"{source}: {info.name!r} may not be in a backup; it was made by something else"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    reader, left = tar.extractfile(info), info.size
    digest = hashlib.sha256()
    with path.open("xb") as file:
        while left and reader is not None:
            with _reading(source, info.name):
                chunk = reader.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise InvalidEvidence(f"{source}: {info.name} is cut off; {_ADVICE}")
            file.write(chunk)
            digest.update(chunk)
            left -= len(chunk)
    return {"path": info.name, "size": info.size, "sha256": digest.hexdigest()}


def _is_plain(info: tarfile.TarInfo, folder: Path) -> bool:
    """Whether a member is a regular file at a relative place below `folder`: no link, no device, no way out."""
    name = info.name
    regular = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
    if not regular or name != posixpath.normpath(name) or name.startswith(("/", "..")) or "\\" in name:
        return False
    try:
        return tarfile.data_filter(info, str(folder)).name == name
    except tarfile.FilterError:
        return False


def _checked(source: Path, folder: Path, manifest: str, found: dict[str, JsonDict]) -> JsonDict:
    """The list's content, after it and every member were compared."""
    said = _MANIFEST.fullmatch(manifest)
    if said is None or found.pop(manifest)["sha256"] != said[1]:
        raise InvalidEvidence(f"{source}: {manifest} was changed; {_ADVICE}")
    body: JsonDict = json.loads((folder / manifest).read_bytes())
    if body.get("schema") != SCHEMA:
        raise InvalidEvidence(
            f"{source}: has schema {body.get('schema')!r}, not {SCHEMA!r}; use the llmops that wrote it"
        )
    listed = {str(member["path"]): member for member in body["members"]}
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            what = "is missing" if name not in found else "is extra" if name not in listed else "was changed"
            raise InvalidEvidence(f"{source}: {name} {what}; {_ADVICE}")
    return body


@contextmanager
def _reading(source: Path, what: str) -> Iterator[None]:
    """Whatever tar and gzip say about damaged bytes, as one error that names the place."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, UnicodeError, OSError) as error:
        raise InvalidEvidence(f"{source}: {what} cannot be read ({error}); {_ADVICE}") from error


class _Hashing:
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def read(self, n_bytes: int = -1) -> bytes:
        """The next bytes, at most `n_bytes`."""
        chunk = self._file.read(n_bytes)
        self._digest.update(chunk)
        return chunk

    def hexdigest(self) -> str:
        """sha256 (hex) of what was read so far."""
        return self._digest.hexdigest()
