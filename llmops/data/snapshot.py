"""Dataset snapshots: built from a config, frozen by content in the store, found by name, read back verified.

An artifact of kind `dataset` holds train.jsonl, rate.jsonl, gate.jsonl (canonical rows) and dropped.jsonl.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from platform import python_version

from llmops.data.builder import builder_file, run_builder
from llmops.data.config import POOLS, BuilderSource, DataConfig
from llmops.data.quarantine import DROPPED_FILE, QUARANTINE_FILE, dropped_lines, quarantine_lines
from llmops.data.rows import canonical_line, prompt_digest, row_of_line
from llmops.data.sources import open_source
from llmops.data.split import Sifted, sift, split
from llmops.data.stored import StoredRows
from llmops.errors import BadRequest, DataError, InvalidEvidence
from llmops.ledger import Ledger
from llmops.records import DatasetSnapshot, Dropped, Row
from llmops.schema import Progress, digest_of, no_progress, short
from llmops.settings import load_yaml
from llmops.store import Store, sha256_file

_REPORT_EVERY = 500


def build_snapshot(
    config_path: Path, store: Store, ledger: Ledger, progress: Progress = no_progress
) -> DatasetSnapshot:
    """Read, check, split and freeze the dataset a YAML file describes; the same rows give the same artifact.

    The ledger gets `dataset.snapshotted` unless this very snapshot is the newest of its name already.

    Raises:
        ConfigError: the YAML file or its builder cannot be used.
        DataError: a file is missing, no row is left, a pool stays empty, or more rows are dropped than the
            budget allows.
        StoreError: the disk did not take it.
    """
    config = load_yaml(config_path, DataConfig)
    formats: list[str] = []
    rows = _read(config, config_path.parent, formats, progress)
    sifted = sift(_reported(rows, progress), config.limits.max_characters)
    _require_within_budget(config, config_path, sifted, store)
    pools = split(sifted.kept, config.pools, config.salt)
    for name in POOLS:
        if getattr(config.pools, name) > 0 and not pools[name]:
            n_groups = len({row.group for row in sifted.kept})
            raise DataError(
                f"{config_path}: pool {name} gets no rows ({n_groups} groups in all); "
                "add groups, or change salt or pools"
            )
    files = {f"{name}.jsonl": _lines(canonical_line(row) for row in pools[name]) for name in POOLS}
    files[DROPPED_FILE] = dropped_lines(sifted.dropped)
    snapshot = DatasetSnapshot(
        name=config.name,
        artifact=store.put_files("dataset", files),
        n_rows={name: len(pools[name]) for name in POOLS},
        n_dropped=dict(sorted(Counter(d.kind for d in sifted.dropped).items())),
        licence=config.licence,
        origin=config.origin.replace("{python}", python_version())
        + (f"; read from {', '.join(formats)}" if formats else ""),
    )
    _record(snapshot, config_digest(config, config_path.parent), store, ledger)
    return snapshot


def config_digest(config: DataConfig, folder: Path) -> str:
    """Digest of the resolved settings and, for a builder, of its file's bytes."""
    resolved = config.model_dump(mode="json")
    if isinstance(config.source, BuilderSource):
        resolved["source"]["sha256"] = sha256_file(builder_file(config.source, folder))
    return digest_of(resolved)


def find_snapshot(store: Store, ledger: Ledger, name: str) -> DatasetSnapshot:
    """The newest snapshot of a dataset.

    Raises:
        BadRequest: none was built.
        InvalidEvidence: its record is gone from the store, or altered.
    """
    found = [e for e in ledger.events("dataset.snapshotted") if e.body["name"] == name]
    if not found:
        raise BadRequest(f"dataset {name}: no snapshot; run `llmops data build` with its YAML file")
    return store.get_record(DatasetSnapshot, str(found[-1].body["snapshot"]))


def load_pool(store: Store, snapshot: DatasetSnapshot, pool: str) -> list[Row]:
    """The rows of one pool, in memory; see `stored_pool`."""
    return list(stored_pool(store, snapshot, pool))


def stored_pool(store: Store, snapshot: DatasetSnapshot, pool: str) -> StoredRows[Row]:
    """The rows of one pool where they lie, after every byte of the snapshot was compared with its digest.

    Raises:
        BadRequest: no such pool, or it is empty.
        InvalidEvidence: the snapshot's files are gone or altered.
    """
    if not snapshot.n_rows.get(pool):
        filled = ", ".join(f"{name} ({n:,})" for name, n in snapshot.n_rows.items() if n)
        raise BadRequest(f"dataset {snapshot.name}: pool {pool} has no rows; use {filled}")
    folder = store.verify("dataset", snapshot.artifact)
    rows = StoredRows(folder / f"{pool}.jsonl", row_of_line)
    if len(rows) != snapshot.n_rows[pool]:
        raise InvalidEvidence(
            f"dataset {snapshot.name}: {short(snapshot.artifact)} holds {len(rows):,} rows in {pool}, "
            f"its record says {snapshot.n_rows[pool]:,}; build it again"
        )
    return rows


def gate_prompts(store: Store, ledger: Ledger) -> set[str]:
    """Digests (`asked_digest`) of every prompt that stands or ever stood in a gate pool here, of any dataset.

    Raises:
        InvalidEvidence: a snapshot's record or files are gone or altered: what gates decide on cannot be told.
    """
    digests = {str(e.body["snapshot"]) for e in ledger.events("dataset.snapshotted")}
    found: set[str] = set()
    for digest in digests:
        snapshot = store.get_record(DatasetSnapshot, digest)
        if snapshot.n_rows.get("gate"):
            found |= {prompt_digest(row.messages) for row in load_pool(store, snapshot, "gate")}
    return found


def _read(config: DataConfig, folder: Path, told: list[str], progress: Progress) -> Iterator[Row | Dropped]:
    """Every row; the name and format of each part are added to `told` as it is opened."""
    if isinstance(config.source, BuilderSource):
        yield from run_builder(config.source, folder)
        return
    for part in open_source(config.source, folder):
        if part.format and part.format.gives is not Row:
            raise DataError(
                f"{part.name}: holds rows in format {part.format.name}, which is no conversation; datasets are of "
                "conversations, give such rows to a recipe"
            )
        told.append(f"{part.name} ({part.format_name})")
        progress(0, 0, f"reading {told[-1]}")
        yield from (row for row in part.found if isinstance(row, Row | Dropped))


def _reported(rows: Iterator[Row | Dropped], progress: Progress) -> Iterator[Row | Dropped]:
    n_read = 0
    for n_read, row in enumerate(rows, start=1):
        if n_read % _REPORT_EVERY == 0:
            progress(n_read, 0, "rows read")
        yield row
    progress(n_read, n_read, "rows read")


def _require_within_budget(config: DataConfig, config_path: Path, sifted: Sifted, store: Store) -> None:
    n_dropped = len(sifted.dropped)
    n_read = n_dropped + len(sifted.kept)
    if n_read == 0:
        raise DataError(f"{config_path}: the dataset is empty; the source gives no rows")
    if sifted.kept and n_dropped <= config.drop_budget_frac * n_read:
        return
    files = {DROPPED_FILE: dropped_lines(sifted.dropped), QUARANTINE_FILE: quarantine_lines(sifted.dropped)}
    listed = store.path("dropped", store.put_files("dropped", files))
    first = sifted.dropped[0]
    raise DataError(
        f"{config_path}: {first.source}: {first.reason}; {n_dropped:,} of {n_read:,} rows dropped, "
        f"the budget is {config.drop_budget_frac:.2%}; all are listed in {listed / QUARANTINE_FILE}; "
        "mend them or raise drop_budget_frac"
    )


def _record(snapshot: DatasetSnapshot, config: str, store: Store, ledger: Ledger) -> None:
    digest = store.put_record(snapshot)
    body = {
        "name": snapshot.name,
        "snapshot": digest,
        "artifact": snapshot.artifact,
        "config": config,
    }
    earlier = [e for e in ledger.events("dataset.snapshotted") if e.body["name"] == snapshot.name]
    if not earlier or earlier[-1].body != body:
        ledger.append("dataset.snapshotted", body)


def _lines(lines: Iterator[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)
