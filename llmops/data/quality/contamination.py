"""Training rows that hold cases of suites, by the n-grams of words they share. Cases are given, not read here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llmops.data.quality.config import Contamination
from llmops.data.quality.findings import Finding, Found
from llmops.data.quality.grams import Hashes, Vocabulary, gram_hashes, grams_up_to, without_common
from llmops.data.quality.texts import AnyRow, asked_words, prompt_of, row_words, words_of
from llmops.records import EvalText
from llmops.schema import short

MIN_N = 8
"""Shortest n-gram that says a text was seen (GPT-3's lower bound); shorter prompts are compared whole."""
MIN_TEMPLATE_CASES = 3
_CHUNK_ROWS = 2_000


@dataclass(frozen=True)
class Overlap:
    """How much of a case stands in one row: `frac` of its n-grams."""

    row: int
    case: int
    frac: float


@dataclass(frozen=True)
class Grams:
    """Distinct n-grams of cases for one n, sorted; gram i belongs to the cases `owners[starts[i]:starts[i + 1]]`."""

    hashes: Hashes
    starts: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]


@dataclass
class Index:
    """The cases of suites, ready to be looked for."""

    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    grams: dict[int, Grams] = field(default_factory=dict)  # by n
    n_grams: list[int] = field(default_factory=list)  # by case; 0: compared whole
    whole: dict[tuple[str, ...], list[int]] = field(default_factory=lambda: defaultdict(list))


def contamination(rows: Sequence[AnyRow], cases: Sequence[EvalText], settings: Contamination) -> Found:
    """Every row that holds a case of a suite, with the case it holds most of.

    The distribution counts cases compared and cases held, and bins cases by the largest fraction in any one row.
    """
    index = build_index(cases, settings)
    worst: dict[int, Overlap] = {}
    most = np.zeros(len(cases))
    for overlap in overlaps(rows, index):
        most[overlap.case] = max(most[overlap.case], overlap.frac)
        if overlap.frac >= settings.min_overlap_frac:
            seen = worst.get(overlap.row)
            if seen is None or overlap.frac > seen.frac:
                worst[overlap.row] = overlap
    findings = [_finding(o, rows[o.row], cases[o.case]) for _, o in sorted(worst.items())]
    return Found(tuple(findings), _distribution(most, settings.min_overlap_frac))


def build_index(cases: Sequence[EvalText], settings: Contamination) -> Index:
    """The n-grams of every case that are its own; a case without any is kept to be compared whole.

    A suite's template (an instruction that its cases share) says nothing about whether one of them was seen.
    """
    index = Index(n_grams=[0] * len(cases))
    by_suite: dict[str, list[int]] = defaultdict(list)
    for i, case in enumerate(cases):
        by_suite[case.suite].append(i)
    found: dict[int, list[tuple[int, Hashes]]] = defaultdict(list)
    for members in by_suite.values():
        sizes = [_n_of(len(cases[i].prompt), settings.max_n) for i in members]
        sets = [_grams(index, cases[i].prompt, n) for i, n in zip(members, sizes, strict=True)]
        own, _ = without_common(sets, settings.template_frac, MIN_TEMPLATE_CASES)
        for i, n, grams in zip(members, sizes, own, strict=True):
            index.n_grams[i] = len(grams)
            if len(grams):
                found[n].append((i, grams))
            elif cases[i].prompt:  # without any words it could not be told from others like it
                index.whole[cases[i].prompt].append(i)
    index.grams = {n: _sorted(parts) for n, parts in found.items()}
    return index


def _sorted(parts: Sequence[tuple[int, Hashes]]) -> Grams:
    hashes = np.concatenate([grams for _, grams in parts])
    owners = np.concatenate([np.full(len(grams), case, dtype=np.int64) for case, grams in parts])
    order = np.argsort(hashes, kind="stable")
    distinct, starts = np.unique(hashes[order], return_index=True)
    return Grams(distinct, np.append(starts, len(hashes)), owners[order])


def overlaps(rows: Sequence[AnyRow], index: Index) -> Iterator[Overlap]:
    """What every row shares with every case, where it shares anything."""
    if index.whole:
        for i, row in enumerate(rows):
            for case in index.whole.get(tuple(asked_words(prompt_of(row))), ()):
                yield Overlap(i, case, 1.0)
    if index.grams:
        for start in range(0, len(rows), _CHUNK_ROWS):
            for i, case, n_shared in _shared(rows[start : start + _CHUNK_ROWS], index):
                yield Overlap(start + i, case, n_shared / index.n_grams[case])


def _shared(rows: Sequence[AnyRow], index: Index) -> Iterator[tuple[int, int, int]]:
    """(row, case, number of the case's n-grams in the row) for all that share any."""
    parts, ends = [], []
    for row in rows:
        # A 0 ends every row: no n-gram of a case reaches over it.
        parts += [index.vocabulary.look_up(row_words(row)), np.zeros(1, dtype=np.uint64)]
        ends.append(len(parts[-2]) + 1)
    numbers, stops = np.concatenate(parts), np.cumsum(ends)
    for n, hashes in grams_up_to(numbers, max(index.grams)):
        if n not in index.grams:
            continue
        known = index.grams[n]
        places = np.minimum(np.searchsorted(known.hashes, hashes), len(known.hashes) - 1)
        at = np.flatnonzero(known.hashes[places] == hashes)
        holders = np.searchsorted(stops, at, side="right")
        # A row that repeats an n-gram holds it once.
        distinct = np.unique(np.stack([holders, places[at]]), axis=1)
        for (holder, case), count in _counted(distinct, known):
            yield holder, case, count


def _counted(held: npt.NDArray[np.int64], known: Grams) -> Iterator[tuple[tuple[int, int], int]]:
    """How many of the n-grams in `held` (rows and places, [2, K]) belong to each row and case."""
    counts: Counter[tuple[int, int]] = Counter()
    for row, place in held.T.tolist():
        counts.update(
            (row, int(case)) for case in known.owners[known.starts[place] : known.starts[place + 1]]
        )
    return iter(counts.items())


def _n_of(n_words: int, max_n: int) -> int:
    """Words in an n-gram of a case this long; half of a short case, so that one changed word does not hide it."""
    return max(MIN_N, min(max_n, n_words // 2))


def _grams(index: Index, words: Sequence[str], n: int) -> Hashes:
    return np.unique(gram_hashes(index.vocabulary.learn(words), n))


def _finding(overlap: Overlap, row: AnyRow, case: EvalText) -> Finding:
    text = " ".join(row_words(row))
    answered = any(
        words and f" {' '.join(words)} " in f" {text} " for words in map(words_of, case.references)
    )
    reason = (
        f"contamination: {overlap.frac:.0%} of case {short(case.case)} of suite {case.suite} ({case.source})"
        + (" with its answer" if answered else "")
    )
    return Finding(overlap.row, reason, overlap.frac)


def _distribution(most: npt.NDArray[np.float64], limit: float) -> dict[str, int | float]:
    """Cases by the largest fraction of their n-grams in one row."""
    bins = {f"n_cases_from_{low:.1f}": int(np.sum(most >= low)) for low in (0.1, 0.3, 0.5, 0.7, 0.9)}
    return {
        "n_cases": len(most),
        "n_cases_held": int(np.sum(most >= limit)),
        "largest_frac": round(float(most.max(initial=0.0)), 4),
        **bins,
    }
