"""Copies are found: exact ones by content, near ones as an exhaustive comparison finds them."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops.data.quality.config import NearDuplicates
from llmops.data.quality.duplicates import N_PERMUTATIONS, banding, exact_duplicates, near_duplicates
from tests.data.quality.planted import WORDS, pair, row, rows_of, words


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    """Sets of n words in a row by plain Python, of the prompt and the constant answer."""
    parts = f"{text} yes it does".split()
    return {tuple(parts[i : i + n]) for i in range(max(1, len(parts) - n + 1))}


def brute_force(texts: list[str], threshold: float) -> dict[int, float]:
    """Every text that is similar to an earlier one that is not listed, with the largest similarity."""
    sets, listed = [shingles(t) for t in texts], dict[int, float]()
    for i, mine in enumerate(sets):
        best = max(
            (len(mine & sets[j]) / len(mine | sets[j]) for j in range(i) if j not in listed), default=0.0
        )
        if best >= threshold:
            listed[i] = best
    return listed


def edited(parts: list[str], n_edits: int, seed: int) -> list[str]:
    draw, out = random.Random(seed), list(parts)
    for at in draw.sample(range(len(out)), n_edits):
        out[at] = draw.choice(WORDS)
    return out


def test_second_and_third_of_equal_rows_are_found_and_the_first_is_named() -> None:
    rows = rows_of(["a b", "c", "a b", "a b"])
    found = exact_duplicates(rows).findings
    assert [(f.index, f.reason) for f in found] == [
        (2, "duplicate: same as rows.jsonl:1"),
        (3, "duplicate: same as rows.jsonl:1"),
    ]


def test_another_answer_system_turn_or_pair_order_is_no_exact_copy() -> None:
    assert exact_duplicates([row("a"), row("a", "No."), row("a", system="Be kind.")]).findings == ()
    assert exact_duplicates([pair("a", "x", "y"), pair("a", "y", "x")]).findings == ()


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.95])
def test_near_copies_are_those_that_comparing_all_pairs_finds(threshold: float) -> None:
    bases = [words(seed, 60) for seed in range(30)]
    texts = [" ".join(base) for base in bases]
    texts += [" ".join(edited(base, n, seed=n)) for base in bases for n in (0, 1, 2, 4, 8)]
    random.Random(7).shuffle(texts)
    found = near_duplicates(rows_of(texts), NearDuplicates(min_similarity=threshold, template_frac=1))
    measured = {f.index: f.weight for f in found.findings}
    exact = brute_force(texts, threshold)
    assert set(measured) <= set(exact), "a row was named that is no near copy"
    for i, similarity in measured.items():
        assert similarity == pytest.approx(exact[i], abs=1e-12)
    # A candidate at the threshold is missed with under 2 %; most here lie well above it.
    assert len(exact) - len(measured) <= 0.02 * len(exact)


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_named_similarity_is_the_exact_jaccard_of_the_named_rows(texts: list[list[str]]) -> None:
    rows = rows_of([" ".join(t) for t in texts])
    for finding in near_duplicates(rows, NearDuplicates(min_similarity=0.5)).findings:
        other = int(finding.reason.rpartition(":")[2]) - 1
        a, b = shingles(" ".join(texts[finding.index])), shingles(" ".join(texts[other]))
        assert other < finding.index
        assert finding.weight == pytest.approx(len(a & b) / len(a | b))


def test_unrelated_rows_are_never_near_copies() -> None:
    assert (
        near_duplicates(rows_of([" ".join(words(s, 50)) for s in range(300)]), NearDuplicates()).findings
        == ()
    )


def test_a_shared_template_makes_no_near_copies_but_comparing_all_words_would() -> None:
    template = " ".join(words(1, 200))
    rows = rows_of([f"{template} {' '.join(words(seed, 12))}" for seed in range(100, 140)])
    found = near_duplicates(rows, NearDuplicates())
    assert found.findings == ()
    assert found.distribution["n_template_shingles"] >= 190
    assert len(near_duplicates(rows, NearDuplicates(template_frac=1)).findings) == 39


def test_rows_of_nothing_but_the_template_are_still_compared() -> None:
    rows = rows_of([" ".join(words(1, 40))] * 25)
    assert len(near_duplicates(rows, NearDuplicates()).findings) == 24


def test_system_turns_do_not_make_rows_alike() -> None:
    system = " ".join(words(3, 300))
    rows = [row(" ".join(words(s, 20)), line=s, system=system) for s in range(10)]
    assert near_duplicates(rows, NearDuplicates(template_frac=1)).findings == ()


def test_a_row_without_words_is_no_copy_of_another() -> None:
    rows = [replace(r, messages=(replace(r.messages[0], content=c), replace(r.messages[1], content="!")))
            for r, c in zip(rows_of(["x", "y"]), ("?!", "..."), strict=True)]  # fmt: skip
    assert near_duplicates(rows, NearDuplicates()).findings == ()


def test_banding_misses_under_two_percent_and_the_next_longer_band_would_miss_more() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9):
        bands, size = banding(threshold)
        assert bands * size <= N_PERMUTATIONS
        assert (1 - threshold**size) ** bands < 0.02
        assert (1 - threshold ** (size + 1)) ** (N_PERMUTATIONS // (size + 1)) >= 0.02
    sizes = [banding(t)[1] for t in (0.5, 0.7, 0.8, 0.9)]
    assert all(a < b for a, b in pairwise(sizes))
