"""Encoded rows on disk, for data that is larger than memory: what stays in memory is about 30 bytes a row.

Rows lie in an unnamed temporary file (TMPDIR says where), which is gone when the process ends.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from llmops.chat import Encoded
from llmops.errors import StoreError
from llmops.train.example import Example

KEY_BYTES = 16


class SpooledExamples(Sequence["Example"]):
    """Examples in a file, in the order they were added; equal to a list of the same ones.

    `keys` holds, for each, what its group is held out by (see `llmops.train.rows.hold_out`).
    """

    def __init__(self, seed: int) -> None:
        """Begin an empty file; `seed` is the recipe's."""
        self.seed = seed
        self.lengths = array("I")  # tokens
        self.keys = bytearray()
        self._starts = array("Q", [0])
        self._file = tempfile.TemporaryFile(prefix="llmops-examples-")  # noqa: SIM115 - closed with the object

    def extend(self, examples: Iterable[Example]) -> None:
        """Add examples at the end.

        Raises:
            StoreError: the disk did not take them.
        """
        for one in examples:
            found = one.encoded
            tokens = array("I", found.input_ids), bytes(found.loss_mask)
            about = found.context_turns, found.unrendered, one.group, one.source
            blob = pickle.dumps((*tokens, *about), protocol=pickle.HIGHEST_PROTOCOL)
            try:
                self._file.write(blob)
            except OSError as error:
                raise StoreError(
                    f"{tempfile.gettempdir()}: encoded rows could not be written ({error.strerror}); free space, or "
                    "set TMPDIR to a larger disk"
                ) from error
            self._starts.append(self._starts[-1] + len(blob))
            self.lengths.append(len(found.input_ids))
            self.keys += group_key(self.seed, one.group)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """One example, or those of a slice as a list."""
        numbers = range(len(self))[index]
        return self._at(numbers) if isinstance(numbers, int) else [self._at(n) for n in numbers]

    def __iter__(self) -> Iterator[Example]:
        """Every example, one at a time."""
        return (self._at(n) for n in range(len(self)))

    def _at(self, n: int) -> Example:
        self._file.flush()
        start, stop = self._starts[n], self._starts[n + 1]
        # Reading at a place moves no position, which forked readers would share.
        ids, mask, context, unrendered, group, source = pickle.loads(
            os.pread(self._file.fileno(), stop - start, start)
        )
        return Example(Encoded(tuple(ids), tuple(mask), context, unrendered), group, source)


class ChosenExamples(Sequence["Example"]):
    """Some of the examples of a file, by their numbers."""

    def __init__(self, spooled: SpooledExamples, numbers: array[int]) -> None:
        """Keep the numbers; nothing is read."""
        self.spooled, self.numbers = spooled, numbers

    @property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        return [self.spooled.lengths[n] for n in self.numbers]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """One example, or those of a slice as a list."""
        if isinstance(index, slice):
            return [self.spooled[n] for n in self.numbers[index]]
        return self.spooled[self.numbers[index]]

    def __iter__(self) -> Iterator[Example]:
        """Every example, one at a time."""
        return (self.spooled[n] for n in self.numbers)


def group_key(seed: int, group: str) -> bytes:
    """What says which groups are held out first: the smaller, the earlier."""
    return hashlib.sha256(f"{seed}:{group}".encode()).digest()[:KEY_BYTES]


def hold_out_spooled(rows: SpooledExamples, held_out_frac: float) -> tuple[ChosenExamples, ChosenExamples]:
    """Rows to train on and rows to hold out: the same as `llmops.train.rows.hold_out` says of a list of them."""
    import numpy as np

    halves = np.frombuffer(bytes(rows.keys), dtype=">u8").reshape(-1, 2).astype("u8")
    keys = np.empty(len(halves), dtype=[("high", "u8"), ("low", "u8")])
    keys["high"], keys["low"] = halves[:, 0], halves[:, 1]
    _, group_of, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    room = round(held_out_frac * len(rows))
    chosen = np.zeros(len(sizes), dtype=bool)
    for group, size in enumerate(sizes):
        if size <= room:
            chosen[group] = True
            room -= int(size)
    held = chosen[group_of.reshape(-1)] if len(rows) else np.zeros(0, dtype=bool)
    kept, held_out = (array("Q", np.flatnonzero(which).astype("u8").tobytes()) for which in (~held, held))
    return ChosenExamples(rows, kept), ChosenExamples(rows, held_out)
