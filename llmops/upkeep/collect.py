"""`llmops gc`: removes from the store what no event of the ledger reaches, and what killed processes left behind.

Checkpoints of a run that has not finished stay unless they are asked for: `llmops finetune --resume` goes on with it.
A sweep is planned first and can be looked at; it is carried out artifact by artifact, each looked at again just before.
The ledger is verified first: behind a chain that is broken or cut off, evidence would look like refuse.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from llmops.checkpoints import Resumable, resumable_runs
from llmops.errors import BadRequest, InvalidEvidence, StoreError
from llmops.ledger import Ledger
from llmops.registry.names import release_anchors
from llmops.settings import Workspace
from llmops.store import STAGING, Store
from llmops.upkeep.backup import SCRATCH_PREFIX
from llmops.upkeep.reach import Artifact, digests_in, reachable, stored
from llmops.upkeep.runs import LONGEST_RUN_S, Unfinished, holding, scratch_folders, unfinished_runs

# How far apart the clocks may be that date an event and a file: two machines', or one's own and a file system's.
CLOCKS_APART_S = 60.0
# They carry heads of the ledger: what is left of one that was cut off.
ANCHORS = frozenset({"release_record", "approval_record", "rollout_record"})


@dataclass(frozen=True)
class Request:
    """What a sweep must leave alone: what is young, in use, or of a kind that cannot be judged now."""

    older_than_s: float = 3600.0
    in_use: frozenset[str] = frozenset()  # digests that a live engine may read
    spared_kinds: frozenset[str] = frozenset()
    checkpoints: bool = False  # remove those of runs that have not finished too


@dataclass(frozen=True)
class Leftover:
    """A folder that a killed process left behind."""

    path: Path
    n_bytes: int


@dataclass(frozen=True)
class Sweep:
    """What would be removed, and what stays although nothing names it."""

    artifacts: tuple[tuple[Artifact, int], ...]  # with their sizes in bytes
    leftovers: tuple[Leftover, ...]
    dead: tuple[str, ...]  # runs that a process died on
    waited_for: tuple[str, ...]  # runs that may still name what they have stored
    resumable: tuple[Resumable, ...]  # runs whose checkpoints stay, or with `Request.checkpoints` go
    n_young: int
    n_spared: int

    @property
    def n_bytes(self) -> int:
        """Bytes of the artifacts that are removed."""
        return sum(size for _, size in self.artifacts)


def plan_sweep(workspace: Workspace, request: Request) -> Sweep:
    """Find what can be removed; changes nothing.

    Raises:
        InvalidEvidence: the ledger does not verify, or a record that it names cannot be read.
        BadRequest: this ledger names nothing in the store, or is not the only one that names what is there.
    """
    store, ledger = Store.of(workspace), Ledger.of(workspace)
    _require_own_store(workspace)
    found = stored(store)  # before the ledger is read: a writer stores first
    ledger.verify(release_anchors(store))
    reached = reachable(store, found, _seeds(ledger, request))
    if found and not reached:
        raise BadRequest(
            f"gc: the ledger in {workspace.root} names nothing of the {len(found):,} artifacts in its store; "
            "check LLMOPS_DATABASE_URL and LLMOPS_STORE_URL, they do not belong together"
        )
    unfinished = unfinished_runs(workspace, ledger)
    waited_for = [run for run in unfinished if not run.dead and run.age_s < LONGEST_RUN_S]
    # A run names what it has stored only at its end.
    young_s = max([request.older_than_s, *(run.age_s + CLOCKS_APART_S for run in waited_for)])
    unnamed = sorted(found - reached)
    judged = [a for a in unnamed if a.kind not in ANCHORS | request.spared_kinds]
    old = [a for a in judged if _age_s(store, a) > young_s]
    return Sweep(
        artifacts=tuple((artifact, store.size_bytes(*artifact)) for artifact in old),
        leftovers=tuple(_leftovers(workspace, ledger, request, unfinished)),
        dead=tuple(run.run for run in unfinished if run.dead),
        waited_for=tuple(run.run for run in waited_for),
        resumable=tuple(_resumable(workspace, ledger, unfinished)),
        n_young=len(judged) - len(old),
        n_spared=len(unnamed) - len(judged),
    )


def carry_out(workspace: Workspace, sweep: Sweep, request: Request) -> Sweep:
    """Remove what a sweep has found, unless it was named or stored again since; tell the ledger. Returns what went.

    Raises:
        StoreError: something could not be removed; what was removed before is gone.
    """
    store, ledger = Store.of(workspace), Ledger.of(workspace)
    for run in sweep.dead:
        with holding(workspace.runs / run) as held:
            if held:
                ledger.append("run.failed", {"run": run, "error": "Killed"})
    named = reachable(store, [artifact for artifact, _ in sweep.artifacts], _seeds(ledger, request))
    removed = []
    for artifact, size in sweep.artifacts:
        if artifact not in named and _age_s(store, artifact) > request.older_than_s:
            store.remove(*artifact)
            removed.append((artifact, size))
    for leftover in sweep.leftovers:
        _remove(leftover.path)
    if removed:
        body = {"n_artifacts": len(removed), "n_bytes": sum(size for _, size in removed)}
        ledger.append("store.collected", body)
    return replace(sweep, artifacts=tuple(removed))


def _require_own_store(workspace: Workspace) -> None:
    if workspace.store_url and workspace.database_url.startswith("sqlite"):
        raise BadRequest(
            "gc: the store is shared (LLMOPS_STORE_URL) and the ledger is this machine's own; other ledgers may name "
            "what lies there, so set LLMOPS_DATABASE_URL to the database that all of them share"
        )


def _seeds(ledger: Ledger, request: Request) -> set[str]:
    return {digest for event in ledger.events() for digest in digests_in(event.body)} | request.in_use


def _age_s(store: Store, artifact: Artifact) -> float:
    try:
        return store.age_s(*artifact)
    except InvalidEvidence:
        return 0.0  # another sweep removed it: nothing to do


def _resumable(workspace: Workspace, ledger: Ledger, unfinished: list[Unfinished]) -> list[Resumable]:
    alive = {run.run for run in unfinished if not run.dead}
    return [run for run in resumable_runs(workspace, ledger) if run.run not in alive]


def _leftovers(
    workspace: Workspace, ledger: Ledger, request: Request, unfinished: list[Unfinished]
) -> Iterator[Leftover]:
    staging = workspace.store_root / STAGING
    alive = {run.run for run in unfinished if not run.dead}
    resumable = {run.run for run in _resumable(workspace, ledger, unfinished)}
    kept = set() if request.checkpoints else resumable
    stale = sorted(staging.iterdir()) if staging.is_dir() else []
    stale += sorted(workspace.state.glob(f"{SCRATCH_PREFIX}*"))
    for path in (*stale, *scratch_folders(workspace, alive, kept)):
        files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else []
        # A writer that still works has touched something of it lately.
        newest = max(_changed_at(p) for p in (path, *files))
        if time.time() - newest > request.older_than_s:
            yield Leftover(path, sum(_size(p) for p in files))


def _changed_at(path: Path) -> float:
    try:
        return path.lstat().st_ctime  # a copied file keeps its mtime
    except FileNotFoundError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{path}: cannot be removed ({error.strerror}); fix permissions") from error
