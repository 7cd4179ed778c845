"""Documents packed into rows of a fixed length, so that nothing is computed on padding.

Which documents share a row is fixed here, before training starts; `llmops.train.documents` keeps them apart. Nothing
here loads torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put every document into one row so that few rows are needed: best fit, longest documents first.

    Each document goes into the fullest row that still has room for it. Such packings need at most 11/9 of the fewest
    possible rows, plus one (Johnson 1974); TRL's `bfd` finds the same number of rows. A million short documents take
    about a second: documents of one length are placed together, and rows with the same room left are interchangeable.

    >>> pack([3, 8, 5, 2, 4], capacity=10)
    [[1, 3], [2, 4], [0]]

    Args:
        lengths: tokens of each document, at least 1 and at most `capacity`.
        capacity: tokens of a row.

    Returns:
        The documents' numbers, row by row, each exactly once; in a row, longer ones first.

    Raises:
        ValueError: a document is empty or does not fit into a row; none is ever cut.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and not 1 <= int(sizes.min()) <= int(sizes.max()) <= capacity:
        raise ValueError(
            f"pack: documents of {int(sizes.min())} to {int(sizes.max())} tokens do not fit rows of {capacity}; "
            "leave out empty ones and make rows at least as long as the longest"
        )
    rows: list[list[int]] = []
    with_room: list[list[int]] = [
        [] for _ in range(capacity)
    ]  # numbers of the rows that have this much room left
    has_room = 0  # bit s is set where with_room[s] is not empty
    order = np.argsort(-sizes, kind="stable")
    starts = np.flatnonzero(np.diff(sizes[order], prepend=-1))
    for same in np.split(order, starts[1:]) if sizes.size else []:
        size, documents = int(sizes[same[0]]), same.tolist()
        at = 0
        while at < len(documents):
            fitting = has_room >> size
            if fitting:
                room = size + (fitting & -fitting).bit_length() - 1
                row = with_room[room].pop()
                if not with_room[room]:
                    has_room &= ~(1 << room)
            else:
                room, row = capacity, len(rows)
                rows.append([])
            # After one of them the row is the fullest that fits the next, until it has no room for any.
            taken = documents[at : at + room // size]
            rows[row] += taken
            at += len(taken)
            room -= size * len(taken)
            if room:
                with_room[room].append(row)
                has_room |= 1 << room
    return rows


def packed_order(lengths: Sequence[int], n_rows: int, capacity: int, seed: int) -> list[list[int]]:
    """Packed rows in training order, `n_rows` of them; every document once before any document twice.

    Each pass over the documents is shuffled, packed and shuffled again, so that other documents of a length share a row
    each time and rows of long documents do not come first. The number of rows of a pass is always the same.

    Args:
        lengths: tokens of each document.
        n_rows: packed rows that are read.
        capacity: tokens of a row.
        seed: fixes the shuffles.
    """
    draw = random.Random(seed)
    order: list[list[int]] = []
    while len(order) < n_rows:
        documents = list(range(len(lengths)))
        draw.shuffle(documents)
        rows = [[documents[i] for i in row] for row in pack([lengths[i] for i in documents], capacity)]
        draw.shuffle(rows)
        order += rows
    return order[:n_rows]
