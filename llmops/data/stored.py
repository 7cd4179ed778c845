"""Rows of a file in the store, read when they are asked for: what is in memory is where each begins."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar, overload

T = TypeVar("T")


class StoredRows(Sequence[T], Generic[T]):
    """The lines of a file as a sequence of what `read` makes of each; equal to a list of the same rows."""

    def __init__(self, path: Path, read: Callable[[bytes], T]) -> None:
        """Look at every line of `path` once, for where it begins."""
        self.path, self.read = path, read
        self._starts = array("Q", [0])
        with path.open("rb") as file:
            for line in file:
                self._starts.append(self._starts[-1] + len(line))

    @property
    def n_bytes(self) -> int:
        """Bytes of all lines together."""
        return self._starts[-1]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[T]:
        """Every row in the order of the file."""
        with self.path.open("rb") as file:
            for line in file:
                yield self.read(line.removesuffix(b"\n"))

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        """One row, or those of a slice as a list."""
        numbers = range(len(self))[index]
        if isinstance(numbers, int):
            return self._at([numbers])[0]
        return self._at(numbers)

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same rows."""
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _at(self, numbers: Sequence[int]) -> list[T]:
        found = []
        with self.path.open("rb") as file:
            for n in numbers:
                file.seek(self._starts[n])
                line = file.read(self._starts[n + 1] - self._starts[n])
                found.append(self.read(line.removesuffix(b"\n")))
        return found
