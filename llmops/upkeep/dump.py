"""The database as JSON lines, one file a table: read at one moment, and put into another database of either kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from llmops.db import shown
from llmops.errors import BadRequest, InvalidEvidence
from llmops.ledger import GENESIS, Event
from llmops.schema import JsonDict, canonical_json
from llmops.tables import metadata

_ROWS_AT_ONCE = 1000


def dump_tables(engine: Engine, folder: Path) -> dict[str, int]:
    """Write every table as `<table>.jsonl` into `folder`, all as they are at one moment; returns rows by table."""
    counts = {}
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":  # SQLite reads one moment in every transaction
            connection = connection.execution_options(isolation_level="REPEATABLE READ")  # noqa: PLW2901
        for table in metadata.sorted_tables:
            query = select(table).order_by(*table.primary_key.columns)
            with (folder / f"{table.name}.jsonl").open("wb") as file:
                n_rows = 0
                for row in connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(query).mappings():
                    file.write(canonical_json(dict(row)) + b"\n")
                    n_rows += 1
            counts[table.name] = n_rows
    return counts


def dumped_events(folder: Path) -> Iterator[Event]:
    """The ledger's events as they were dumped, oldest first."""
    for row in _rows(folder / "events.jsonl"):
        yield Event(row["seq"], row["at"], row["kind"], json.loads(row["body"]), row["prev"], row["hash"])


def dumped_head(folder: Path) -> tuple[int, str]:
    """Number and hash of the newest event that was dumped; (0, 64 zeros) when there is none."""
    head = (0, GENESIS)
    for event in dumped_events(folder):
        head = (event.seq, event.hash)
    return head


def require_empty(engine: Engine) -> None:
    """Refuse a database that holds something.

    Raises:
        BadRequest: a table has rows.
    """
    with engine.connect() as connection:
        for table in metadata.sorted_tables:
            n_rows = connection.scalar(select(func.count()).select_from(table))
            if n_rows:
                raise BadRequest(
                    f"database {shown(engine.url)}: holds {n_rows:,} {table.name} already; "
                    "nothing is ever overwritten, give an empty one"
                )


def load_tables(connection: Connection, folder: Path) -> None:
    """Insert dumped rows, inside a transaction of `db.writing`; a table that was not dumped stays empty.

    Raises:
        InvalidEvidence: a row has a column that the table does not have.
    """
    for table in metadata.sorted_tables:
        path = folder / f"{table.name}.jsonl"
        rows = _rows(path) if path.is_file() else iter(())
        while batch := list(islice(rows, _ROWS_AT_ONCE)):
            unknown = {name for row in batch for name in row} - set(table.columns.keys())
            if unknown:
                raise InvalidEvidence(
                    f"database/{path.name}: unknown columns {sorted(unknown)}; use the llmops that wrote it"
                )
            connection.execute(table.insert(), batch)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            row: JsonDict = json.loads(line)
            yield row
