"""From rows that were learnt to the ratings behind them: what an export writes beside its rows, read back.

`origins.jsonl` in a dataset's files has a line a row of train.jsonl: {item, ratings}. A preference carries both itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from llmops.errors import BadRequest
from llmops.ledger import Ledger
from llmops.ratings.withdrawn import lost_ratings
from llmops.records import DatasetSnapshot
from llmops.schema import canonical_json
from llmops.store import Store

ORIGINS_FILE = "origins.jsonl"


def origin_lines(origins: Iterable[tuple[str, Sequence[str]]]) -> bytes:
    """The file's bytes, from each row's item and ratings (digests)."""
    lines = (canonical_json({"item": item, "ratings": list(ratings)}) for item, ratings in origins)
    return b"".join(line + b"\n" for line in lines)


def origins_of(store: Store, artifact: str) -> list[tuple[str, ...]]:
    """The ratings behind each row of a dataset's files; empty where no ratings are behind them.

    Raises:
        InvalidEvidence: the files are gone or altered.
    """
    path = store.verify("dataset", artifact) / ORIGINS_FILE
    if not path.is_file():
        return []
    return [tuple(json.loads(line)["ratings"]) for line in path.read_bytes().splitlines()]


def require_standing(
    ledger: Ledger, name: str, rows: Iterable[Sequence[str]], again: str = "llmops feedback export"
) -> None:
    """Refuse rows that rest on ratings which were taken back, or whose texts were deleted on demand.

    What was learnt from them before stays as it is.

    Raises:
        BadRequest: says how many, and what to run again.
    """
    gone = lost_ratings(ledger)
    if not gone:
        return
    each = list(rows)
    n = sum(any(rating in gone for rating in ratings) for ratings in each)
    if n:
        raise BadRequest(
            f"{name}: {n} of {len(each)} rows rest on ratings that were taken back, or whose texts were deleted; run "
            f"`{again}` again"
        )


def require_dataset_standing(store: Store, ledger: Ledger, snapshot: DatasetSnapshot) -> None:
    """`require_standing` for a dataset, whether or not ratings are behind it.

    Raises:
        BadRequest: as there.
        InvalidEvidence: the dataset's files are gone or altered.
    """
    if lost_ratings(ledger):
        require_standing(ledger, f"dataset {snapshot.name}", origins_of(store, snapshot.artifact))
