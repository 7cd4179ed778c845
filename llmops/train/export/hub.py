"""`push`: the files of an export on a model hub, and a look at what arrived there.

The token comes from the environment (HF_TOKEN), the hub from HF_ENDPOINT; huggingface_hub does the work.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmops.errors import BadRequest, CouldNotRun, InvalidEvidence
from llmops.manifest import manifest_of, sha256_file
from llmops.registry.bases import SOURCE_FILE
from llmops.schema import JsonDict, Progress, digest_of, no_progress
from llmops.train.export.source import CARD_FILE, SCHEMA

TOKEN_VARIABLE = "HF_TOKEN"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Pushed:
    """Files that lie on a hub: the repository, the commit they came with, and where to look at them."""

    repo: str
    commit: str
    url: str


def require_repo(repo: str) -> None:
    """Refuse what cannot be a repository's name.

    Raises:
        BadRequest: not `owner/name`.
    """
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise BadRequest(f"repository {repo!r}: give owner/name, as the hub has it")


def require_token() -> str:
    """The hub's token.

    Raises:
        BadRequest: the environment has none.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise BadRequest(
            f"{TOKEN_VARIABLE}: is not set; put a token with write access there, or use --dry-run"
        )
    return token


def read_export(folder: Path) -> JsonDict:
    """What `finish` wrote of a folder, after comparing its files with it (the card is free to be edited).

    Raises:
        BadRequest: the folder is not one that an export wrote.
        InvalidEvidence: a file was changed, added or removed since.
    """
    try:
        said: JsonDict = json.loads((folder / SOURCE_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise BadRequest(
            f"{folder}: was not written by an export ({error}); export the adapter first"
        ) from None
    if not isinstance(said, dict) or said.get("schema") != SCHEMA:
        raise BadRequest(f"{folder}/{SOURCE_FILE}: is not of schema {SCHEMA}; export the adapter again")
    manifest = manifest_of(folder)
    manifest["files"] = [f for f in manifest["files"] if f["path"] not in (SOURCE_FILE, CARD_FILE)]
    if digest_of(manifest) != said.get("files_digest"):
        raise InvalidEvidence(
            f"{folder}: its files are not those that were checked; export the adapter again"
        )
    return said


def listed(folder: Path) -> list[tuple[str, int, str]]:
    """Path, size in bytes and sha256 of every file that would be pushed."""
    return [(f["path"], f["size"], f["sha256"]) for f in manifest_of(folder)["files"]]


def push_folder(folder: Path, repo: str, private: bool, progress: Progress = no_progress) -> Pushed:
    """Put a folder's files into a repository of the hub, made when it is not there, and compare what arrived.

    Raises:
        BadRequest: there is no token, or the hub does not take it.
        CouldNotRun: the hub cannot be reached, or does not have the files afterwards.
    """
    from httpx2 import TransportError  # what huggingface_hub's own client raises without a network
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=require_token())
    try:
        progress(0, 0, f"pushing to {repo}")
        api.create_repo(repo, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"{folder.name}: written by llmops"
        )
        progress(0, 0, "comparing what arrived")
        there = {f.path: f for f in api.list_repo_tree(repo, recursive=True, revision=made.oid)}
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise BadRequest(
                f"push {repo}: the hub does not let this token write there ({status}); check {TOKEN_VARIABLE} and owner"
            ) from error
        raise CouldNotRun(f"push {repo}: the hub answered {status}; try again later") from error
    except OfflineModeIsEnabled as error:
        raise BadRequest(f"push {repo}: HF_HUB_OFFLINE is set; unset it") from error
    except (TransportError, OSError) as error:
        raise CouldNotRun(f"push {repo}: the hub cannot be reached ({error}); check the network") from error
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in there or not _same(path, there[name]):
            raise CouldNotRun(f"push {repo}: {name} did not arrive as it was sent; push again")
    return Pushed(repo, str(made.oid), str(made.repo_url))


def _same(path: Path, remote: Any) -> bool:
    """Whether the hub has the file's bytes: sha256 of large files, git's own sha1 of small ones."""
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == sha256_file(path))
    content = path.read_bytes()
    return bool(remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())
