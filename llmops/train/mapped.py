"""Rows for a trainer in a file that is mapped into memory: what is not being read is on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

ROWS_A_BATCH = 32


def mapped_dataset(
    rows: Iterable[Mapping[str, Sequence[int]]], columns: Sequence[str], path: Path
) -> Dataset:
    """The rows as a dataset over the new file `path`, equal to one made in memory.

    Args:
        rows: for each column a list of whole numbers.
        columns: the columns' names.
        path: the file, whose folder is made; it must stay for as long as the dataset is used.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    features = Features({name: List(Value("int64")) for name in columns})
    with ArrowWriter(path=str(path), features=features, writer_batch_size=ROWS_A_BATCH) as writer:
        for row in rows:
            writer.write(dict(row))
        writer.finalize()
    return Dataset.from_file(str(path))
