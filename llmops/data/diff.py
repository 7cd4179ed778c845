"""Two sets of rows compared by what they teach: added, removed, changed answers, moved between pools.

A set is a dataset's or preference snapshot, by name or digest, or a file. Reads; writes nothing.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmops.data.quality.texts import AnyRow, prompt_of, spelling
from llmops.data.rows import asked_digest, read_any
from llmops.data.snapshot import load_pool
from llmops.errors import BadRequest, DataError
from llmops.ledger import Ledger
from llmops.ratings.preferences import load_pairs
from llmops.records import DatasetSnapshot, Dropped, PreferenceSnapshot
from llmops.schema import digest_of, short
from llmops.store import Store

MIN_DIGEST = 6
FILE_POOL = "file"
_RECORDS = {"dataset.snapshotted": "snapshot", "preferences.snapshotted": "preferences"}
"""By kind of event, where it names the snapshot's record."""


@dataclass(frozen=True)
class Side:
    """One of two sets of rows: what it is called, and its rows by pool."""

    what: str
    pools: dict[str, list[AnyRow]]

    @property
    def n_rows(self) -> int:
        """Rows in all pools."""
        return sum(map(len, self.pools.values()))


@dataclass(frozen=True)
class Placed:
    """A row with its pool."""

    row: AnyRow
    pool: str


@dataclass(frozen=True)
class Difference:
    """What is not the same in two sets; changed and moved rows as (before, after)."""

    n_same: int
    added: tuple[Placed, ...]
    removed: tuple[Placed, ...]
    changed: tuple[tuple[Placed, Placed], ...]
    moved: tuple[tuple[Placed, Placed], ...]

    @property
    def any(self) -> bool:
        """Whether anything differs."""
        return bool(self.added or self.removed or self.changed or self.moved)


def compare(before: Side, after: Side) -> Difference:
    """What became of every row.

    Rows are the same when they teach the same in the same pool, wherever they stood; moved, when only the pool differs;
    changed, when what is asked is the same and the answer is another one. Every row of both sides counts once.
    """
    old, new = _placed(before), _placed(after)
    same, old, new = _match(old, new, lambda p: (digest_of(spelling(p.row)), p.pool))
    moved, old, new = _match(old, new, lambda p: digest_of(spelling(p.row)))
    changed, old, new = _match(old, new, lambda p: asked_digest(prompt_of(p.row)))
    return Difference(len(same), tuple(new), tuple(old), tuple(changed), tuple(moved))


def find_side(reference: str, store: Store, ledger: Ledger) -> Side:
    """The rows that `reference` names: a name (its newest snapshot), `name@digest`, a digest's start, or a file.

    Raises:
        BadRequest: nothing, or more than one snapshot, answers to it.
        DataError: the file cannot be read, or has a row that cannot.
        InvalidEvidence: the snapshot was altered.
    """
    path = Path(reference)
    if path.is_file():
        return Side(reference, {FILE_POOL: _rows_of(path)})
    name, _, digest = reference.rpartition("@")
    found: dict[str, str] = {}
    newest: str | None = None
    for event in ledger.events("dataset.snapshotted", "preferences.snapshotted"):
        snapshot = str(event.body[_RECORDS[event.kind]])
        if event.body["name"] == reference:
            newest = snapshot
            found[snapshot] = event.kind
        elif len(digest) >= MIN_DIGEST and snapshot.startswith(digest) and name in ("", event.body["name"]):
            found[snapshot] = event.kind
    if newest is not None:
        found = {newest: found[newest]}
    if len(found) != 1:
        what = "nothing" if not found else f"{len(found)} snapshots"
        raise BadRequest(
            f"{reference}: {what} of that name or digest; give a file, a name of `llmops data list`, or more digits"
        )
    return _snapshot(*next(iter(found.items())), store)


def _snapshot(digest: str, kind: str, store: Store) -> Side:
    if kind == "preferences.snapshotted":
        pairs = store.get_record(PreferenceSnapshot, digest)
        return Side(f"{pairs.name}@{short(digest)}", {"pairs": list(load_pairs(store, pairs))})
    rows = store.get_record(DatasetSnapshot, digest)
    pools: dict[str, list[AnyRow]] = {
        pool: list(load_pool(store, rows, pool)) for pool, n in rows.n_rows.items() if n
    }
    return Side(f"{rows.name}@{short(digest)}", pools)


def _rows_of(path: Path) -> list[AnyRow]:
    rows: list[AnyRow] = []
    for row in read_any(path):
        if isinstance(row, Dropped):
            raise DataError(f"{row.source}: {row.reason}; mend the row, what it holds cannot be compared")
        rows.append(row)
    return rows


def _placed(side: Side) -> list[Placed]:
    return [Placed(row, pool) for pool, rows in side.pools.items() for row in rows]


def _match(
    old: Sequence[Placed], new: Sequence[Placed], key: Callable[[Placed], object]
) -> tuple[list[tuple[Placed, Placed]], list[Placed], list[Placed]]:
    """Rows paired by a key, each at most once and in order; then the rows of both sides that are left."""
    waiting: dict[object, deque[Placed]] = defaultdict(deque)
    for placed in old:
        waiting[key(placed)].append(placed)
    pairs, left = [], []
    for placed in new:
        same = waiting.get(key(placed))
        if same:
            pairs.append((same.popleft(), placed))
        else:
            left.append(placed)
    used = {id(before) for before, _ in pairs}
    return pairs, [placed for placed in old if id(placed) not in used], left
