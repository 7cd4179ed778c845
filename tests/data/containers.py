"""One table of rows written into every container, for the tests of reading."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path: Path, rows: Rows) -> Path:
    path.write_text(json.dumps(rows, indent=1))
    return path


def write_csv(path: Path, rows: Rows, separator: str = ",") -> Path:
    """What is no text is written as JSON, as people do who must put turns into a cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    writer.writerow(columns)
    for row in rows:
        cells = [row.get(name, "") for name in columns]
        writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
    path.write_text(out.getvalue())
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    import pyarrow
    from pyarrow import parquet

    columns = list(dict.fromkeys(name for row in rows for name in row))
    parquet.write_table(pyarrow.Table.from_pylist([{c: row.get(c) for c in columns} for row in rows]), path)
    return path


WRITERS = {"jsonl": write_jsonl, "json": write_json, "csv": write_csv, "parquet": write_parquet}
