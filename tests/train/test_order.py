"""The order of rows."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from llmops.train.order import padding_frac, training_order
from llmops.train.recipe import Batch

LENGTHS = [10 + (7919 * i) % 300 for i in range(203)]


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=60),
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(1, 3),
    st.booleans(),
)
def test_every_row_is_seen_once_before_any_row_is_seen_twice(
    lengths: list[int], n_steps: int, per_device: int, accumulation: int, grouped: bool
) -> None:
    batch = Batch(per_device=per_device, accumulation=accumulation, group_by_length=grouped)
    order = training_order(lengths, n_steps, batch, seed=3)
    assert len(order) == n_steps * batch.n_rows
    counts = Counter(order)
    assert set(counts) <= set(range(len(lengths)))
    seen = [counts[i] for i in range(len(lengths))]
    assert max(seen) - min(seen) <= 1


def test_order_depends_on_the_seed_alone() -> None:
    batch = Batch(per_device=8)
    assert training_order(LENGTHS, 60, batch, 1) == training_order(LENGTHS, 60, batch, 1)
    assert training_order(LENGTHS, 60, batch, 1) != training_order(LENGTHS, 60, batch, 2)


def test_grouping_by_length_saves_padding_without_making_a_curriculum() -> None:
    grouped, plain = Batch(per_device=8), Batch(per_device=8, group_by_length=False)
    order = training_order(LENGTHS, 400, grouped, 0)
    assert padding_frac(LENGTHS, order, 8) < 0.5 * padding_frac(
        LENGTHS, training_order(LENGTHS, 400, plain, 0), 8
    )
    halves = [order[: len(order) // 2], order[len(order) // 2 :]]
    means = [sum(LENGTHS[i] for i in half) / len(half) for half in halves]
    assert abs(means[0] - means[1]) < 0.05 * sum(means)


def test_padding_of_a_known_batch_is_counted_exactly() -> None:
    # Two passes of two rows: 4+2 of 8 computed tokens, 3+3 of 6.
    assert padding_frac([4, 2, 3, 3], [0, 1, 2, 3], 2) == 1 - 12 / 14
