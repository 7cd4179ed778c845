"""Words as numbers, and the hashes of every n of them in a row. 64-bit: two n-grams out of 10 million share one with
a probability of 1 in 370,000.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing


class Vocabulary:
    """Numbers for words, by order of first appearance, mixed so that sums of them do not collide."""

    def __init__(self) -> None:
        """Know no word."""
        self._known: dict[str, int] = {}

    def learn(self, words: Iterable[str]) -> Hashes:
        """The numbers of these words, new ones among them."""
        known = self._known
        return _mix(np.array([known.setdefault(word, len(known) + 1) for word in words], dtype=np.uint64))

    def look_up(self, words: Iterable[str]) -> Hashes:
        """The numbers of these words, 0 where one was never learnt: no n-gram of learnt words has a 0."""
        known = self._known
        return _mix(np.array([known.get(word, 0) for word in words], dtype=np.uint64))


def gram_hashes(numbers: Hashes, n: int) -> Hashes:
    """The hashes of every `n` numbers in a row, [T - n + 1]; empty where there are fewer than n."""
    return next(hashes for size, hashes in grams_up_to(numbers, n) if size == n)


def grams_up_to(numbers: Hashes, max_n: int) -> Iterator[tuple[int, Hashes]]:
    """For every n from 1 to `max_n`: n and the hashes of every n numbers in a row."""
    total = np.zeros(len(numbers), dtype=np.uint64)
    for n in range(1, max_n + 1):
        n_grams = max(len(numbers) - n + 1, 0)
        total = total[:n_grams] * _BASE + numbers[n - 1 : n - 1 + n_grams]
        yield n, total


def without_common(sets: Sequence[Hashes], frac: float, at_least: int) -> tuple[list[Hashes], int]:
    """The sets without the members that stand in more than `frac` of them and in `at_least`; and how many those are.

    Args:
        sets: each without repeats.
        frac: fraction of the sets, over 0 to 1.
        at_least: number of sets.
    """
    if not sets:
        return [], 0
    members, counts = np.unique(np.concatenate(sets), return_counts=True)
    common = members[(counts > frac * len(sets)) & (counts >= at_least)]
    if len(common) == 0:
        return list(sets), 0
    return [s[~np.isin(s, common, assume_unique=True)] for s in sets], len(common)


def _mix(values: Hashes) -> Hashes:
    """splitmix64's finaliser (Steele 2014), a bijection that spreads every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
