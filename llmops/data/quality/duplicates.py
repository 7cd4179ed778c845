"""Rows that repeat earlier ones: exactly, or nearly (MinHash and locality-sensitive hashing, by datasketch)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from llmops.data.quality.config import NearDuplicates
from llmops.data.quality.findings import Finding, Found
from llmops.data.quality.grams import Hashes, Vocabulary, gram_hashes, without_common
from llmops.data.quality.texts import AnyRow, row_words, spelling
from llmops.schema import digest_of

N_PERMUTATIONS = 128
"""Hashes a row is sketched with."""
MIN_TEMPLATE_ROWS = 20
_MISSED = 0.02
_LOW_32_BITS = np.uint64(0xFFFFFFFF)


def exact_duplicates(rows: Sequence[AnyRow]) -> Found:
    """Every row that is an earlier one again."""
    first: dict[str, int] = {}
    findings = []
    for i, row in enumerate(rows):
        j = first.setdefault(digest_of(spelling(row)), i)
        if j != i:
            findings.append(Finding(i, f"duplicate: same as {rows[j].source}"))
    return Found(tuple(findings), {"n_distinct": len(first)})


def near_duplicates(rows: Sequence[AnyRow], settings: NearDuplicates) -> Found:
    """Every row that is similar to an earlier row which is no such copy itself.

    A row is named with the most similar of those earlier rows; the first of a family of copies is never named.
    """
    vocabulary = Vocabulary()
    sets = [_shingles(vocabulary.learn(row_words(row, system=False)), settings.n_words) for row in rows]
    kept_sets, n_common = without_common(sets, settings.template_frac, MIN_TEMPLATE_ROWS)
    # A row of nothing but a template's words is compared by them.
    compared = [own if len(own) else whole for own, whole in zip(kept_sets, sets, strict=True)]
    findings = [
        Finding(i, f"near duplicate: {similarity:.2f} like {rows[j].source}", similarity)
        for i, j, similarity in similar_to_earlier(compared, settings.min_similarity)
    ]
    return Found(tuple(findings), {"n_template_shingles": n_common})


def similar_to_earlier(sets: Sequence[Hashes], min_similarity: float) -> list[tuple[int, int, float]]:
    """(i, j, Jaccard similarity) of every set i that is similar to an earlier set j which is not listed itself."""
    from datasketch import MinHash, MinHashLSH

    bands, rows_a_band = banding(min_similarity)
    index = MinHashLSH(num_perm=N_PERMUTATIONS, params=(bands, rows_a_band))
    empty = MinHash(num_perm=N_PERMUTATIONS, hashfunc=int)
    found = []
    for i, members in enumerate(sets):
        if len(members) == 0:
            continue
        sketch = empty.copy()
        sketch.update_batch((members & _LOW_32_BITS).tolist())
        near = [(jaccard(members, sets[j]), -j) for j in index.query(sketch)]
        similarity, minus_j = max(near, default=(0.0, 0))
        if similarity >= min_similarity:
            found.append((i, -minus_j, similarity))
        else:
            index.insert(i, sketch, check_duplication=False)
    return found


def jaccard(a: Hashes, b: Hashes) -> float:
    """Members that two sets share over the members of both; each is without repeats, and one is not empty."""
    n_shared = len(np.intersect1d(a, b, assume_unique=True))
    return n_shared / (len(a) + len(b) - n_shared)


@cache
def banding(min_similarity: float) -> tuple[int, int]:
    """Number of bands and hashes a band: the most selective ones that miss a pair at the threshold with under 2 %.

    A pair of similarity s is a candidate with probability 1 - (1 - s^r)^b (Leskovec, Mining of Massive Datasets, 3.4).
    """
    fitting = [
        (N_PERMUTATIONS // r, r)
        for r in range(1, N_PERMUTATIONS // 2 + 1)
        if (1 - min_similarity**r) ** (N_PERMUTATIONS // r) < _MISSED
    ]
    return max(fitting, key=lambda pair: pair[1])


def _shingles(numbers: Hashes, n: int) -> Hashes:
    """The set of all n words in a row; a shorter text is one shingle."""
    return np.unique(gram_hashes(numbers, min(n, len(numbers)))) if len(numbers) else numbers
