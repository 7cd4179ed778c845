"""Dataset snapshots: built from a config, frozen by content in the store, found by name, read back verified.

An artifact of kind `dataset` holds train.jsonl, rate.jsonl, gate.jsonl (canonical rows) and dropped.jsonl.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from platform import python_version

from llmops.data.builder import builder_file, run_builder
from llmops.data.config import POOLS, BuilderSource, DataConfig
from llmops.data.gate import Gates, check_rows, check_train, joined
from llmops.data.quarantine import DROPPED_FILE, QUARANTINE_FILE, dropped_lines, quarantine_lines
from llmops.data.rows import canonical_line, prompt_digest, row_of_line
from llmops.data.sources import open_source
from llmops.data.split import Sifted, account, in_order, sift, split
from llmops.data.stored import StoredRows
from llmops.errors import BadRequest, DataError, InvalidEvidence
from llmops.ledger import Ledger
from llmops.manifest import sha256_file
from llmops.records import DatasetSnapshot, Dropped, QualityReport, Row
from llmops.schema import Progress, digest_of, no_progress, short
from llmops.settings import load_yaml
from llmops.store import Store

_REPORT_EVERY = 500


def build_snapshot(
    config_path: Path,
    store: Store,
    ledger: Ledger,
    progress: Progress = no_progress,
    gates: Gates | None = None,
) -> DatasetSnapshot:
    """Read, check, split and freeze the dataset a YAML file describes; the same rows give the same artifact.

    The ledger gets `dataset.snapshotted` unless this very snapshot is the newest of its name already. `gates` tells the
    suites' cases and is shown the quality report.

    Raises:
        ConfigError: the YAML file or its builder cannot be used, or a quality check needs what is not installed.
        DataError: a file is missing, no row is left, a pool stays empty, more rows are dropped than the budget
            allows, or a quality check refuses them.
        StoreError: the disk did not take it.
    """
    config = load_yaml(config_path, DataConfig)
    formats: list[str] = []
    read = list(_reported(_read(config, config_path.parent, formats, progress), progress))
    pools, sifted = _pools(config, config_path, read, gates or Gates(progress=progress))
    _require_within_budget(config, config_path, sifted, store)
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


def check_dataset(config_path: Path, gates: Gates) -> tuple[QualityReport, list[Dropped]]:
    """The quality report of the dataset a YAML file describes, as if it were built now, and its malformed rows.

    Every check is made and nothing is written.

    Raises:
        ConfigError: the YAML file or its builder cannot be used.
        DataError: a file is missing; with `gates.enforce`, also what a build would be refused for.
    """
    config = load_yaml(config_path, DataConfig)
    config = config.model_copy(update={"quality": config.quality.reporting()})
    shown: list[QualityReport] = []
    read = list(_read(config, config_path.parent, [], gates.progress))
    _pools(config, config_path, read, replace(gates, show=shown.append))
    return shown[0], [row for row in read if isinstance(row, Dropped)]


def _pools(
    config: DataConfig, where: Path, read: Sequence[Row | Dropped], gates: Gates
) -> tuple[dict[str, list[Row]], Sifted]:
    """The rows of every pool after all checks, and the account of every row that was read."""
    rows = in_order(row for row in read if isinstance(row, Row))
    checked = check_rows(rows, config.quality, str(where), gates)
    others = (row for row in read if isinstance(row, Dropped))
    sifted = sift((*checked.rows, *others, *checked.dropped), config.limits.max_characters)
    pools = split(sifted.kept, config.pools, config.salt)
    train = check_train(pools, config.quality, config.name, gates)
    gates.show(joined(checked.report, train.report, config.quality))
    pools["train"] = list(train.rows)
    return pools, account(pools, (*sifted.dropped, *train.dropped))


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
