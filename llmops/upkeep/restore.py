"""`llmops restore`: a workspace from a backup. All of it is compared and verified before its folder appears."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from llmops.db import HEAD_REVISION, open_database, writing
from llmops.errors import CouldNotRun, InvalidEvidence
from llmops.ledger import GENESIS, Ledger, append_event
from llmops.ratings.check import verify_ratings
from llmops.registry.names import release_anchors
from llmops.remote import Remote
from llmops.schema import JsonDict, Progress, no_progress
from llmops.settings import MARKER, Workspace, WorkspaceConfig, find_workspace
from llmops.store import Store
from llmops.upkeep.backup import DATABASE, MLFLOW, RUNS, STORE, WORKSPACE
from llmops.upkeep.bundle import read_bundle
from llmops.upkeep.dump import dumped_events, load_tables, require_empty
from llmops.upkeep.place import made_beside, require_free
from llmops.upkeep.reach import Artifact, digests_in, missing, reachable, stored

DATABASE_FILE = "llmops.db"


@dataclass(frozen=True)
class Restored:
    """What was brought back; `created_at` is when the backup was taken."""

    created_at: str
    n_events: int
    n_ratings: int
    n_artifacts: int


def restore(source: Path, root: Path, progress: Progress = no_progress) -> Restored:
    """Make the workspace of a backup in `root`, which is not there yet or empty.

    With LLMOPS_DATABASE_URL the rows go into that database, which must be empty; with LLMOPS_STORE_URL the artifacts go
    there too.

    Raises:
        BadRequest: `root` or the database is not empty, or there is no such file.
        InvalidEvidence: the backup is damaged, cut off or does not hold together; nothing is made.
        CouldNotRun: a newer llmops wrote it.
        StoreError: the disk did not take it; nothing is left behind.
    """
    require_free(root)
    target = _shared_database(root)
    with made_beside(root) as stage:
        parts = stage.parent / "parts"
        parts.mkdir()
        progress(0, 0, "reading and comparing")
        digest, manifest = read_bundle(source, parts)
        if str(manifest["revision"]) > HEAD_REVISION:
            raise CouldNotRun(
                f"{source}: was written by llmops {manifest['llmops']}, which is newer; install that"
            )
        workspace = _arrange(parts, stage)
        engine = open_database(f"sqlite:///{workspace.state / DATABASE_FILE}")
        _fill(engine, parts / DATABASE, digest, manifest)
        n_ratings, artifacts = _verify(workspace, Ledger(engine), parts / DATABASE, manifest)
        engine.dispose()  # closes the file, which moves with its folder
        if workspace.store_url:
            _upload(workspace, Remote(workspace.store_url), artifacts, progress)
        if target is not None:
            _fill(target, parts / DATABASE, digest, manifest)
            for path in workspace.state.glob(f"{DATABASE_FILE}*"):
                path.unlink()
    n_events = int(manifest["tables"]["events"])
    return Restored(str(manifest["created_at"]), n_events, n_ratings, len(artifacts))


def _shared_database(root: Path) -> Engine | None:
    """The database that LLMOPS_DATABASE_URL names, after it was found empty; None when there is none."""
    if not os.environ.get("LLMOPS_DATABASE_URL"):
        return None
    engine = open_database(Workspace(root, WorkspaceConfig()).database_url)
    require_empty(engine)
    return engine


def _arrange(parts: Path, stage: Path) -> Workspace:
    """Move the members to where a workspace has them."""
    if not (parts / WORKSPACE / MARKER).is_file():
        raise InvalidEvidence(f"{WORKSPACE}/{MARKER}: is not in the backup; it was made by something else")
    for child in sorted((parts / WORKSPACE).iterdir()):
        child.rename(stage / child.name)
    workspace = find_workspace(stage)
    for name, place in (
        (STORE, workspace.store_root),
        (RUNS, workspace.runs),
        (MLFLOW, workspace.state / MLFLOW),
    ):
        if (parts / name).exists():
            (parts / name).rename(place)
    for path in workspace.store_root.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
    return workspace


def _fill(engine: Engine, folder: Path, digest: str, manifest: JsonDict) -> None:
    """Put the dumped rows and the event of this restoration into a database, all or nothing."""
    body = {"backup": digest, "n_events": manifest["tables"]["events"]}
    with writing(engine) as connection:
        load_tables(connection, folder)
        append_event(connection, "backup.restored", body)


def _verify(
    workspace: Workspace, ledger: Ledger, folder: Path, manifest: JsonDict
) -> tuple[int, list[Artifact]]:
    """Check the chain, the ratings, and every artifact; returns how many ratings there are, and the artifacts.

    Raises:
        InvalidEvidence: names what does not hold.
    """
    store, events = Store(workspace.store_root), list(dumped_events(folder))
    ledger.verify(release_anchors(store))
    head = {"seq": events[-1].seq, "hash": events[-1].hash} if events else {"seq": 0, "hash": GENESIS}
    if head != manifest["ledger"]:
        raise InvalidEvidence(
            f"ledger: ends at event {head['seq']}, the backup was taken at {manifest['ledger']['seq']}"
        )
    artifacts = sorted(stored(store))
    for artifact in artifacts:
        store.verify(*artifact)
    seeds = {found for event in events for found in digests_in(event.body)}
    lost = missing(store, events, reachable(store, artifacts, seeds))
    if lost:
        raise InvalidEvidence(f"store: {lost[0]} is not in the backup; restore an earlier one")
    return verify_ratings(store, ledger), artifacts


def _upload(workspace: Workspace, remote: Remote, artifacts: list[Artifact], progress: Progress) -> None:
    """Put the artifacts at the shared store's URL too."""
    for i, (kind, digest) in enumerate(artifacts, start=1):
        remote.put(kind, digest, workspace.store_root / kind / digest)
        progress(i, len(artifacts), f"to {remote.url}")
