"""A recipe's data frozen: rows that are no snapshot yet become one, so that lineage can name what was trained on.

Conversations and judged answers lie in the store as a dataset, preferences as preferences.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from llmops.data.rows import canonical_line, row_of_line
from llmops.data.stored import StoredRows
from llmops.ratings.preferences import PAIRS_FILE, preference_line, preference_of_line
from llmops.records import (
    DatasetSnapshot,
    Dropped,
    Labelled,
    Message,
    Preference,
    PreferenceSnapshot,
    Row,
)
from llmops.registry.adapters import Registry
from llmops.schema import Progress, canonical_json
from llmops.train.gather import Account, Gathering, Wanted, gather
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
    progress: Progress


def freeze_rows(asked: Asked, registry: Registry) -> Frozen[DatasetSnapshot, Row]:
    """The conversations of a recipe's data as a dataset snapshot.

    Raises:
        DataError: the data cannot be read, or holds something else.
        LlmopsError: hub, database or endpoint cannot be reached, or the disk did not take it.
    """
    return _freeze_dataset(asked, registry, Wanted(Row, canonical_line, TRAIN_FILE), row_of_line)


def freeze_judged(asked: Asked, registry: Registry) -> Frozen[DatasetSnapshot, Labelled]:
    """The judged answers of a recipe's data as a dataset snapshot; a preference is two of them. Raises as above."""
    wanted = Wanted(Labelled, labelled_line, TRAIN_FILE)
    return _freeze_dataset(asked, registry, wanted, labelled_of_line)


def freeze_preferences(asked: Asked, registry: Registry) -> Frozen[PreferenceSnapshot, Preference]:
    """The preferences of a recipe's data as a snapshot. Raises as above."""
    wanted = Wanted(Preference, preference_line, PAIRS_FILE)
    account, artifact = _put("preferences", asked, registry, wanted)
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


def labelled_line(row: Labelled) -> bytes:
    """The one line of a judged answer: a conversation's (see `canonical_line`), and its label."""
    turns = [m.to_turn() for m in (*row.messages, Message("assistant", row.completion))]
    return canonical_json({"messages": turns, "label": row.good, "group": row.group, "source": row.source})


def labelled_of_line(line: bytes) -> Labelled:
    """The judged answer that `labelled_line` wrote."""
    data = json.loads(line)
    messages = tuple(Message.of_turn(m) for m in data["messages"])
    return Labelled(messages[:-1], messages[-1].content, data["label"], data["group"], data["source"])


def _freeze_dataset(
    asked: Asked, registry: Registry, wanted: Wanted, read: Any
) -> Frozen[DatasetSnapshot, Any]:
    account, artifact = _put("dataset", asked, registry, wanted)
    snapshot = DatasetSnapshot(
        name=f"{asked.name}-files",
        artifact=artifact,
        n_rows={"train": account.n_kept},
        n_dropped=_counts(account),
        licence=LICENCE,
        origin=f"data of the recipe: {account.words}",
    )
    registry.store.put_record(snapshot)
    path = registry.store.path("dataset", artifact) / wanted.file
    return Frozen(snapshot, StoredRows(path, read), tuple(account.dropped))


def _put(kind: str, asked: Asked, registry: Registry, wanted: Wanted) -> tuple[Account, str]:
    seed = asked.data.seed if isinstance(asked.data, MixtureSource) else 0
    gathering = Gathering(parts_of(asked.data), seed, asked.folder, registry, asked.progress)
    accounts: list[Account] = []

    def build(folder: Path) -> None:
        accounts.append(gather(gathering, wanted, folder))

    artifact = registry.store.put_built(kind, build)
    return accounts[0], artifact


def _counts(account: Account) -> dict[str, int]:
    return dict(sorted(Counter(d.kind for d in account.dropped).items()))
