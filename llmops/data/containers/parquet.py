"""Parquet, read by pyarrow a few hundred rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmops.data.containers.cells import row_of_cells
from llmops.data.containers.lines import readable
from llmops.data.formats import Raw
from llmops.errors import DataError
from llmops.records import Dropped

ROWS_A_BATCH = 256


def read_parquet(path: Path, name: str) -> Iterator[Raw | Dropped]:
    """Every row, counted from 1.

    Raises:
        DataError: the file is missing or is not Parquet.
    """
    import pyarrow
    from pyarrow import parquet

    n_read = 0
    try:
        with readable(path), path.open("rb") as file:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=ROWS_A_BATCH):
                for cells in batch.to_pylist():
                    n_read += 1
                    yield Raw(row_of_cells(cells), f"{name}:{n_read}")
    except pyarrow.ArrowException as error:
        where = f"after {n_read:,} rows" if n_read else "from its start"
        raise DataError(f"{path}: is not Parquet {where} ({_first_line(error)}); write it again") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
