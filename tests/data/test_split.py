"""Pools: stable, disjoint by group, and every row accounted for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmops.data.config import POOLS, Pools
from llmops.data.split import pool_of, sift, split
from llmops.records import Dropped, Message, Row

SHARES = Pools(train=0.7, rate=0.1, gate=0.2)


def row(prompt: str, answer: str, group: str, source: str) -> Row:
    return Row((Message("user", prompt), Message("assistant", answer)), group, source)


rows_of_any_kind = st.lists(
    st.one_of(
        st.builds(
            row,
            st.sampled_from("abc"),
            st.sampled_from("xy"),
            st.sampled_from("GHI"),
            st.sampled_from(["f:1", "f:2", "f:10"]),
        ),
        st.builds(Dropped, st.sampled_from(["f:3", "g:1"]), st.just("malformed JSON: x")),
    ),
    max_size=30,
)


@given(rows_of_any_kind, st.randoms())
def test_every_row_is_kept_or_dropped_and_reading_order_changes_nothing(
    rows: list[Row | Dropped], random
) -> None:  # type: ignore[no-untyped-def]
    sifted = sift(rows, max_characters=10)
    assert len(sifted.kept) + len(sifted.dropped) == len(rows)
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert sift(shuffled, max_characters=10) == sifted


@given(rows_of_any_kind)
def test_no_prompt_stands_in_two_groups_and_no_conversation_twice(rows: list[Row | Dropped]) -> None:
    kept = sift(rows, max_characters=10).kept
    groups: dict[str, set[str]] = {}
    for kept_row in kept:
        groups.setdefault(kept_row.messages[0].content, set()).add(kept_row.group)
    assert all(len(found) == 1 for found in groups.values())
    assert len({r.messages for r in kept}) == len(kept)


def test_dropped_copies_name_the_row_that_stays() -> None:
    rows = [
        row("p", "a", "g", "x.py:10"),
        row("p", "a", "g", "x.py:9"),
        row("p", "c", "h", "y.py:1"),
        row("p", "b", "g", "x.py:11"),
    ]
    sifted = sift(rows, max_characters=10)
    assert [r.source for r in sifted.kept] == ["x.py:9", "x.py:11"]
    assert sifted.dropped == (
        Dropped("x.py:10", "duplicate: same as x.py:9"),
        Dropped("y.py:1", "prompt of another group: same as x.py:9"),
    )


def test_row_over_the_limit_is_dropped_with_its_size_and_at_the_limit_is_kept() -> None:
    sifted = sift([row("12345", "67890", "g", "f:1"), row("12345", "678901", "g", "f:2")], max_characters=10)
    assert [r.source for r in sifted.kept] == ["f:1"]
    assert sifted.dropped == (Dropped("f:2", "too long: 11 characters, limit 10"),)


def test_adding_groups_moves_no_other_group_and_pools_share_none() -> None:
    few = [row(str(i), "a", f"module{i}", f"f:{i}") for i in range(50)]
    many = [row(str(i), "a", f"module{i}", f"f:{i}") for i in range(400)]
    before = {r.group: name for name, rows in split(few, SHARES, "s").items() for r in rows}
    after = {r.group: name for name, rows in split(many, SHARES, "s").items() for r in rows}
    assert len(after) == 400
    assert before == {group: after[group] for group in before}


def test_pools_follow_the_declared_shares_and_the_salt() -> None:
    counts = dict.fromkeys(POOLS, 0)
    for i in range(4000):
        counts[pool_of(f"m{i}", SHARES, "s")] += 1
    # Binomial standard deviations are 29, 19 and 25: bounds of about five.
    assert abs(counts["train"] - 2800) < 145
    assert abs(counts["rate"] - 400) < 95
    assert abs(counts["gate"] - 800) < 127
    assert any(pool_of(f"m{i}", SHARES, "s") != pool_of(f"m{i}", SHARES, "t") for i in range(20))


def test_pool_of_a_group_never_changes_between_versions() -> None:
    # First bytes by sha256sum of "docstrings-1\0NAME": fe, e0, c0, 92, over 256: 0.99, 0.88, 0.75, 0.57.
    expected = {"json": "gate", "email": "gate", "tkinter": "rate", "ast": "train"}
    assert {group: pool_of(group, SHARES, "docstrings-1") for group in expected} == expected
