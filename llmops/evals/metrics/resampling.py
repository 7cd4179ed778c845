"""Bootstrap resamples of corpus metrics from sufficient statistics: text is scored once, however many resamples.

A resample draws G of G units (cases, or whole clusters of them) with replacement; all systems and metrics of one call
share the draws, so they pair up. A corpus metric depends on its cases through sums alone: with counts [R, G], how often
resample r holds unit g, all R values are `score(counts @ stats)`. From one seed the draws are those of sacrebleu's own
bootstrap.

Where it is used: corpus metrics that ask for it (`resamples` of a suite's `bleu`, `chrf` and `ter`), and differences of
quantiles. Without, a corpus metric has the jackknife of `llmops.stats`, which comes to about the same interval and
needs no seed.

Shapes: N cases, G units, S statistics, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmops.errors import BadRequest, InvalidEvidence
from llmops.stats import CorpusScore, FloatArray, Interval, Labels
from llmops.stats.guard import student_doubt
from llmops.stats.interval import IntArray, are_units, cluster_codes, of_cases
from llmops.stats.student import Error, quantiles

SEED = 12345
"""What sacrebleu takes unless told otherwise."""
_CELLS = 1 << 21  # of counts at once: 16 MiB


@dataclass(frozen=True, eq=False)
class Resampling:
    """How often is resampled, and which cases stay together ([N] labels; None where cases are independent)."""

    n_resamples: int
    clusters: Labels | None = None


def resample(
    parts: Sequence[tuple[FloatArray, CorpusScore]], n_resamples: int, seed: int = SEED
) -> list[FloatArray]:
    """The values of corpus metrics on the same resamples of their units.

    Args:
        parts: sufficient statistics [G, S] with the metric that makes a value of their sums; S may differ, G may not.
        n_resamples: R.
        seed: of the draws.

    Returns:
        [R] for each part, resample r of one being that of the others.

    Raises:
        BadRequest: no resample is asked for.
        InvalidEvidence: the parts are of different numbers of units, or of fewer than 2.
    """
    if n_resamples < 1:
        raise BadRequest(f"resample: {n_resamples} resamples say nothing; ask for 1,000 or more")
    sizes = {len(stats) for stats, _ in parts}
    if len(sizes) != 1 or min(sizes) < 2:
        raise InvalidEvidence(
            f"resample: parts of {sorted(sizes)} cases; give the same 2 cases or more to each"
        )
    together = np.hstack([stats for stats, _ in parts])
    edges = np.cumsum([0] + [stats.shape[1] for stats, _ in parts])
    found: list[list[FloatArray]] = [[] for _ in parts]
    for counts in counts_of(len(together), n_resamples, seed):
        summed = counts @ together
        for i, (_, score) in enumerate(parts):
            found[i].append(score(summed[:, edges[i] : edges[i + 1]]))
    return [np.concatenate(values) for values in found]


def counts_of(n: int, n_resamples: int, seed: int = SEED) -> Iterator[FloatArray]:
    """How often each resample holds each of n units, [R', n] at a time; R' adds up to the number of resamples."""
    rng, step = np.random.default_rng(seed), max(1, _CELLS // n)
    for first in range(0, n_resamples, step):
        n_rows = min(step, n_resamples - first)
        drawn = rng.integers(0, n, (n_rows, n)) + n * np.arange(n_rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=n_rows * n).reshape(n_rows, n).astype(np.float64)


def bootstrap(stats: FloatArray, score: CorpusScore, level: float, how: Resampling) -> Interval:
    """Interval of one system's corpus metric; `level` is that of each bound.

    Raises:
        InvalidEvidence: fewer than 2 cases.
    """
    codes = cluster_codes(how.clusters, len(stats))
    (values,) = resample([(_units(stats, codes), score)], how.n_resamples)
    return around(float(score(stats.sum(axis=0)[None])[0]), values, level, codes, len(stats))


def paired_bootstrap(
    systems: tuple[FloatArray, FloatArray], score: CorpusScore, level: float, how: Resampling
) -> Interval:
    """Interval of the difference of two systems' corpus metric, second minus first, over shared resamples.

    Raises:
        InvalidEvidence: the systems do not have the same number of cases, or fewer than 2.
    """
    n = len(systems[0])
    codes = cluster_codes(how.clusters, n)
    before, after = resample([(_units(stats, codes), score) for stats in systems], how.n_resamples)
    baseline, candidate = score(np.stack([stats.sum(axis=0) for stats in systems]))
    found = around(float(candidate - baseline), after - before, level, codes, n)
    return replace(found, method=f"paired {found.method}")


def around(estimate: float, values: FloatArray, level: float, codes: IntArray | None, n: int) -> Interval:
    """The interval of an estimate whose error shows in its values [R] on resamples of the units of n cases.

    Standard error and skewness of the values take the place of the jackknife's in `llmops.stats.student`, with its
    quantiles and doubts. Under the null it errs in 3 to 7 % of corpora where quantiles of the values err in 4 to 8 %
    (BLEU and chrF, 64 and 200 cases, nominal 5 %).
    """
    clustered = are_units(codes)
    n_units = int(codes.max()) + 1 if are_units(codes) else n
    centred = values - values.mean()
    spread = float(values.std())
    error = Error(
        spread * math.sqrt(n_units / (n_units - 1)),
        float(n_units - 1),
        float(np.mean(centred**3)) / spread**3 if spread > 1e-12 * max(1.0, abs(estimate)) else 0.0,
    )
    below, above = quantiles(error, level)
    found = Interval(
        estimate=estimate,
        low=estimate - below * error.se,
        high=estimate + above * error.se,
        level=level,
        n=n,
        sd=error.se * math.sqrt(n),
        method=f"{'clustered ' if clustered else ''}bootstrap, {len(values)} resamples",
        n_clusters=n_units if clustered else None,
        doubt=student_doubt(error.se, error.skewness, n_units, None),
    )
    return found if clustered else of_cases(found, codes)


def _units(stats: FloatArray, codes: IntArray | None) -> FloatArray:
    """[G, S] the summed statistics of each unit that is drawn as a whole."""
    if not are_units(codes):
        return stats
    summed = np.zeros((int(codes.max()) + 1, stats.shape[1]))
    np.add.at(summed, codes, stats)
    return summed
