"""CSV and TSV with a header. Cells stay the text they are: `007`, `null` and `nan` are words that someone wrote.

(pandas and datasets, which guess types, would read them as 7 and as missing.)
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from llmops.data.containers.cells import row_of_cells
from llmops.data.containers.lines import readable
from llmops.data.formats import Raw
from llmops.errors import DataError
from llmops.records import Dropped

SEPARATORS = ",;\t"


def read_delimited(path: Path, name: str) -> Iterator[Raw | Dropped]:
    """Every record under the header; its place is the line it begins on.

    The separator is the one of comma, semicolon and tab that the header has most of.

    Raises:
        DataError: the file cannot be read, its header names a column twice, or a quote is never closed.
    """
    csv.field_size_limit(sys.maxsize)
    with readable(path), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        head = file.readline()
        file.seek(0)
        records = csv.reader(file, delimiter=max(SEPARATORS, key=head.count), strict=True)
        try:
            columns = next(records, [])
        except csv.Error as error:
            raise DataError(f"{path}:1: malformed CSV: {error}; mend the header") from None
        if len(set(columns)) < len(columns):
            twice = next(c for i, c in enumerate(columns) if c in columns[:i])
            raise DataError(f"{path}:1: column {twice!r} stands twice in the header; rename one")
        yield from _records(records, columns, path, name)


def _records(
    records: Iterator[list[str]], columns: list[str], path: Path, name: str
) -> Iterator[Raw | Dropped]:
    while True:
        first = records.line_num + 1  # type: ignore[attr-defined]
        place = f"{name}:{first}"
        try:
            cells = next(records, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(
                    f"{path}:{first}: malformed CSV: a quote is opened and never closed; close it, no row after it "
                    "can be read"
                ) from None
            yield Dropped(place, f"malformed CSV: {error}")
            continue
        if cells is None:
            return
        yield _record(cells, columns, place)


def _record(cells: list[str], columns: list[str], place: str) -> Raw | Dropped:
    if not cells:
        return Dropped(place, "empty line")
    if len(cells) != len(columns):
        reason = f"malformed CSV: {len(cells)} cells, the header has {len(columns)}"
        return Dropped(place, reason, json.dumps(cells))
    try:
        "".join(cells).encode()
    except UnicodeEncodeError as error:
        return Dropped(place, f"not UTF-8: byte {ord(error.object[error.start]) - 0xDC00:#04x}")
    return Raw(row_of_cells(dict(zip(columns, cells, strict=True))), place)
