"""Containers of data: JSON lines, a JSON array, CSV and Parquet, each read row by row with what stands where.

A row's place is `file:line`; in a JSON array and in Parquet, which have no lines, it is the number of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from llmops.data.containers.lines import parse_line, read_lines
from llmops.data.formats import Raw
from llmops.records import Dropped

__all__ = ["parse_line", "read_lines", "read_values"]


def read_values(path: Path, name: str | None = None) -> Iterator[Raw | Dropped]:
    """Every row of a file, whose name's ending says what it is (.json, .csv, .tsv, .parquet; else JSON lines).

    Args:
        path: the file.
        name: what stands for the path in each row's place (default: the path as given).

    Raises:
        DataError: the file is missing, cannot be read, or is not what its name says.
    """
    return _READERS.get(path.suffix.lower(), read_lines)(path, name or str(path))


def _array(path: Path, name: str) -> Iterator[Raw | Dropped]:
    from llmops.data.containers.array import read_array

    return read_array(path, name)


def _csv(path: Path, name: str) -> Iterator[Raw | Dropped]:
    from llmops.data.containers.delimited import read_delimited

    return read_delimited(path, name)


def _parquet(path: Path, name: str) -> Iterator[Raw | Dropped]:
    from llmops.data.containers.parquet import read_parquet

    return read_parquet(path, name)


_READERS: dict[str, Callable[[Path, str], Iterator[Raw | Dropped]]] = {
    ".json": _array,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
