"""Which documents share a row, and when each row is read."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import pack_dataset

from llmops.train.packing import pack, packed_order

LENGTHS = [10 + (7919 * i) % 300 for i in range(203)]


@given(st.lists(st.integers(1, 64), max_size=80), st.integers(64, 90))
def test_every_document_lies_whole_in_exactly_one_row_that_has_room_for_it(
    lengths: list[int], capacity: int
) -> None:
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= capacity for row in rows)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(50, 80))
def test_rows_are_filled_as_by_trls_best_fit_decreasing(lengths: list[int], capacity: int) -> None:
    theirs = pack_dataset(Dataset.from_dict({"input_ids": [[1] * n for n in lengths]}), capacity, "bfd")
    ours = [[lengths[i] for i in row] for row in pack(lengths, capacity)]
    # Rows with the same room left are interchangeable, so what a row holds may differ, how full rows are may not.
    assert sorted(map(sum, ours)) == sorted(map(sum, theirs["seq_lengths"]))


@pytest.mark.parametrize("lengths", [[5, 11], [5, 0]])
def test_documents_that_do_not_fit_are_refused_and_never_cut(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit rows of 10"):
        pack(lengths, 10)


def test_nothing_packs_into_nothing() -> None:
    assert pack([], 10) == []


def test_a_million_short_documents_take_seconds() -> None:
    lengths = [8 + (7919 * i) % 200 for i in range(1_000_000)]
    started = time.monotonic()
    rows = pack(lengths, 2048)
    assert time.monotonic() - started < 15  # 0.4 s on a quiet machine
    assert len(rows) * 2048 < 1.001 * sum(lengths)


def test_every_document_is_read_once_before_any_is_read_twice() -> None:
    per_pass = len(pack(LENGTHS, 512))
    order = packed_order(LENGTHS, 3 * per_pass + 5, 512, seed=3)
    assert len(order) == 3 * per_pass + 5
    for start in range(0, 3 * per_pass, per_pass):
        read = [i for row in order[start : start + per_pass] for i in row]
        assert sorted(read) == list(range(len(LENGTHS)))
    counts = Counter(i for row in order for i in row)
    assert set(counts.values()) <= {3, 4}


def test_packed_order_depends_on_the_seed_alone() -> None:
    assert packed_order(LENGTHS, 60, 512, 1) == packed_order(LENGTHS, 60, 512, 1)
    assert packed_order(LENGTHS, 60, 512, 1) != packed_order(LENGTHS, 60, 512, 2)


def test_long_documents_are_not_read_first() -> None:
    order = packed_order(LENGTHS, len(pack(LENGTHS, 512)), 512, seed=0)
    halves = [order[: len(order) // 2], order[len(order) // 2 :]]
    n_documents = [sum(map(len, half)) for half in halves]
    assert abs(n_documents[0] - n_documents[1]) < 0.2 * sum(n_documents)
