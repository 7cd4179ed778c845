"""A recipe's data frozen: rows that are no snapshot yet become one, so that lineage can name what was trained on.

Conversations and judged answers lie in the store as a dataset, preferences as preferences.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from llmops.data.quality import Assessed
from llmops.data.quality.pii import redact_row
from llmops.data.quarantine import DROPPED_FILE, dropped_lines
from llmops.data.rows import canonical_line, labelled_line, labelled_of_line, row_of_line
from llmops.data.snapshot import find_snapshot
from llmops.data.stored import StoredRows
from llmops.errors import BadRequest
from llmops.ratings.origins import require_dataset_standing
from llmops.ratings.preferences import PAIRS_FILE, preference_line, preference_of_line
from llmops.records import (
    DatasetSnapshot,
    Dropped,
    Labelled,
    Preference,
    PreferenceSnapshot,
    Row,
)
from llmops.registry.adapters import Registry
from llmops.train.gate import UNCHECKED, Gate
from llmops.train.gather import NOT_DRAWN_FILE, Account, Gathering, Wanted, gather
from llmops.train.recipe import Recipe
from llmops.train.recipe.methods import LearnsFrom
from llmops.train.recipe.sources import AnySource, MixtureSource, parts_of

TRAIN_FILE = "train.jsonl"
LICENCE = "not stated"

S = TypeVar("S", DatasetSnapshot, PreferenceSnapshot)
T = TypeVar("T", Row, Preference, Labelled)


@dataclass(frozen=True)
class Frozen(Generic[S, T]):
    """Rows as they lie in the store, and those that could not be read."""

    snapshot: S
    rows: Sequence[T]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True)
class Asked:
    """What is to be frozen: the data a recipe names, the recipe's name, and what its paths are relative to."""

    data: AnySource
    name: str
    folder: Path
    gate: Gate


def freeze_rows(asked: Asked, registry: Registry) -> Frozen[DatasetSnapshot, Row]:
    """The conversations of a recipe's data as a dataset snapshot.

    Raises:
        DataError: the data cannot be read, or holds something else.
        LlmopsError: hub, database or endpoint cannot be reached, or the disk did not take it.
    """
    return _freeze_dataset(asked, registry, "conversations")


def freeze_judged(asked: Asked, registry: Registry) -> Frozen[DatasetSnapshot, Labelled]:
    """The judged answers of a recipe's data as a dataset snapshot; a preference is two of them. Raises as above."""
    return _freeze_dataset(asked, registry, "judged")


def freeze_preferences(asked: Asked, registry: Registry) -> Frozen[PreferenceSnapshot, Preference]:
    """The preferences of a recipe's data as a snapshot. Raises as above."""
    account, artifact = _put("preferences", asked, registry, "pairs")
    snapshot = PreferenceSnapshot(
        name=f"{asked.name}-files",
        artifact=artifact,
        campaign=None,
        dataset=None,
        n_pairs=account.n_kept,
        n_dropped=_counts(account),
        rule=f"pairs of the recipe's data: {account.words}",
        licence=LICENCE,
        created_at=None,
    )
    registry.store.put_record(snapshot)
    path = registry.store.path("preferences", artifact) / PAIRS_FILE
    return Frozen(snapshot, StoredRows(path, preference_of_line), tuple(account.dropped))


def read_judged(name: str, registry: Registry, gate: Gate) -> Frozen[DatasetSnapshot, Labelled]:
    """The judged answers of a dataset, as `llmops feedback export --as kto` has frozen them.

    Raises:
        BadRequest: there is no such dataset, it holds conversations, or rests on ratings that were taken back.
        InvalidEvidence: the snapshot was altered.
        DataError: the gate refuses them.
    """
    snapshot = find_snapshot(registry.store, registry.ledger, name)
    require_dataset_standing(registry.store, registry.ledger, snapshot)
    path = registry.store.verify("dataset", snapshot.artifact) / TRAIN_FILE
    with path.open("rb") as file:
        if "label" not in json.loads(file.readline() or b"{}"):
            raise BadRequest(
                f"dataset {name}: holds conversations, where judged answers are needed; "
                "`llmops feedback export --as kto` makes some"
            )
    rows = StoredRows(path, labelled_of_line)
    checked = gate.check(rows)
    if not checked.changed:
        return Frozen(snapshot, rows, ())
    return freeze_rest(snapshot, checked, registry, labelled_line)


def freeze_rest(
    snapshot: DatasetSnapshot, checked: Assessed[T], registry: Registry, line: Callable[[T], bytes]
) -> Frozen[DatasetSnapshot, T]:
    """The rows of a snapshot that its checks left, as a snapshot of their own under the same name.

    Raises:
        StoreError: the disk did not take it.
    """
    files = {
        TRAIN_FILE: b"".join(line(row) + b"\n" for row in checked.rows),
        DROPPED_FILE: dropped_lines(checked.dropped),
    }
    rest = replace(
        snapshot,
        artifact=registry.store.put_files("dataset", files),
        n_rows={"train": len(checked.rows)},
        n_dropped=counts_with(snapshot.n_dropped, checked.dropped),
    )
    registry.store.put_record(rest)
    return Frozen(rest, checked.rows, checked.dropped)


def counts_with(counts: Mapping[str, int], dropped: Sequence[Dropped]) -> dict[str, int]:
    """Dropped rows by reason, with more of them."""
    return dict(sorted((Counter(counts) + Counter(d.kind for d in dropped)).items()))


def _freeze_dataset(asked: Asked, registry: Registry, form: LearnsFrom) -> Frozen[DatasetSnapshot, Any]:
    account, artifact = _put("dataset", asked, registry, form)
    snapshot = DatasetSnapshot(
        name=f"{asked.name}-files",
        artifact=artifact,
        n_rows={"train": account.n_kept},
        n_dropped=_counts(account),
        licence=LICENCE,
        origin=f"data of the recipe: {account.words}",
    )
    registry.store.put_record(snapshot)
    wanted, read = FORMS[form]
    path = registry.store.path("dataset", artifact) / wanted.file
    return Frozen(snapshot, StoredRows(path, read), tuple(account.dropped))


def gather_asked(asked: Asked, registry: Registry, wanted: Wanted, folder: Path) -> Account:
    """Write the rows that are asked for into a folder, unchecked.

    Raises:
        LlmopsError: as `freeze_rows`.
    """
    seed = asked.data.seed if isinstance(asked.data, MixtureSource) else 0
    return gather(
        Gathering(parts_of(asked.data), seed, asked.folder, registry, asked.gate.progress), wanted, folder
    )


FORMS: dict[LearnsFrom, tuple[Wanted, Callable[[bytes], Any]]] = {
    "conversations": (Wanted(Row, canonical_line, TRAIN_FILE), row_of_line),
    "judged": (Wanted(Labelled, labelled_line, TRAIN_FILE), labelled_of_line),
    "pairs": (Wanted(Preference, preference_line, PAIRS_FILE), preference_of_line),
}
"""By what a method learns from: how its rows are written down, and read again."""


def read_unchecked(
    recipe: Recipe, folder: Path, registry: Registry, scratch: Path
) -> tuple[Sequence[Any], list[Dropped]]:
    """The rows of a recipe as they are read, and those that are malformed; written to `scratch`, not to the store.

    Raises:
        BadRequest: the dataset or the preferences are not there.
        LlmopsError: as `freeze_rows`.
    """
    wanted, read = FORMS[recipe.method.learns_from[0]]
    account = gather_asked(Asked(recipe.data, recipe.name, folder, UNCHECKED), registry, wanted, scratch)
    return StoredRows(scratch / wanted.file, read), account.dropped


def _put(kind: str, asked: Asked, registry: Registry, form: LearnsFrom) -> tuple[Account, str]:
    """Rows written, checked, and only then put into the store: what a check drops or redacts never gets there."""
    wanted, read = FORMS[form]
    accounts: list[Account] = []

    def build(folder: Path) -> None:
        account = gather_asked(asked, registry, wanted, folder)
        checked = asked.gate.check(StoredRows(folder / wanted.file, read))
        if checked.changed:
            (folder / wanted.file).write_bytes(b"".join(wanted.line(row) + b"\n" for row in checked.rows))
            account.n_kept = len(checked.rows)
            account.dropped += checked.dropped
            (folder / DROPPED_FILE).write_bytes(dropped_lines(account.dropped))
        rest = folder / NOT_DRAWN_FILE
        if asked.gate.settings.pii.action == "redact" and rest.is_file():
            redacted = [redact_row(row, asked.gate.settings.pii) for row in StoredRows(rest, read)]
            rest.write_bytes(b"".join(wanted.line(row) + b"\n" for row in redacted))
        accounts.append(account)

    artifact = registry.store.put_built(kind, build)
    return accounts[0], artifact


def _counts(account: Account) -> dict[str, int]:
    return dict(sorted(Counter(d.kind for d in account.dropped).items()))
