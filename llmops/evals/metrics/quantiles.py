"""Quantiles over cases (the median, the 95th percentile): their value, interval and paired difference.

No sum of statistics gives a quantile, and the jackknife does not converge for it (Efron 1982, The jackknife, the
bootstrap and other resampling plans, chapter 3): one system's interval is exact from order statistics, a difference
has a bootstrap.

Shapes: N cases, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats as scipy_stats

from llmops.errors import InvalidEvidence
from llmops.evals.metrics.resampling import around, counts_of
from llmops.stats import FloatArray, Interval, Labels
from llmops.stats.interval import IntArray, are_units, checked_pairs, cluster_codes, of_cases

N_RESAMPLES = 2000
_LEVEL = 0.95


def quantile_of(values: FloatArray, share: float) -> float:
    """The smallest of the values [N] that a share of them does not exceed."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def n_least(share: float, level: float = _LEVEL) -> int:
    """How many cases a two-sided interval needs: with fewer, all may lie on one side of the true quantile.

    >>> n_least(0.5), n_least(0.95)
    (5, 59)
    """
    return math.ceil(math.log(1 - level) / math.log(max(share, 1 - share)))


def quantile_interval(
    values: FloatArray, share: float, level: float, clusters: Labels | None = None
) -> Interval:
    """The interval of a quantile between two of the values: how many lie below the true one is binomial.

    Each bound keeps its level whatever the distribution; ties only widen it. Source: David and Nagaraja, Order
    statistics (2003), section 7.1. Clusters are not binomial: with them the interval is that of `paired_quantile`.

    Raises:
        InvalidEvidence: too few values for bounds at this level.
    """
    n, codes = len(values), cluster_codes(clusters, len(values))
    _require_cases(n, share, level)
    estimate = quantile_of(values, share)
    if are_units(codes):
        (resampled,) = _resampled((values,), share, codes)
        return around(estimate, resampled, level, codes, n)
    low, high = scipy_stats.binom.ppf([1 - level, level], n, share)
    low -= scipy_stats.binom.cdf(low, n, share) > 1 - level
    ordered = np.sort(values)
    bounds = float(ordered[max(int(low), 0)]), float(ordered[min(int(high), n - 1)])
    sd = (bounds[1] - bounds[0]) / (2 * float(scipy_stats.norm.ppf(level))) * math.sqrt(n)
    return of_cases(Interval(estimate, *bounds, level, n, sd, "order statistics"), codes)


def paired_quantile(
    systems: tuple[FloatArray, FloatArray], share: float, level: float, clusters: Labels | None = None
) -> Interval:
    """The interval of the difference of two systems' quantiles, second minus first, resampling both together.

    Raises:
        InvalidEvidence: the systems have not the same cases, or too few of them.
    """
    before, after = checked_pairs(*systems, ndim=1)
    n, codes = len(before), cluster_codes(clusters, len(before))
    _require_cases(n, share, level)
    a, b = _resampled((before, after), share, codes)
    found = around(quantile_of(after, share) - quantile_of(before, share), b - a, level, codes, n)
    return replace(found, method=f"paired {found.method}")


def _require_cases(n: int, share: float, level: float) -> None:
    if n < n_least(share, level):
        raise InvalidEvidence(
            f"quantile: {n} cases do not bound the {share:.0%} quantile; evaluate {n_least(share, level)} or more"
        )


def _resampled(systems: Sequence[FloatArray], share: float, codes: IntArray | None) -> list[FloatArray]:
    """[R] the quantile of each system's values on the same resamples of cases, or of whole clusters."""
    units: IntArray = codes if are_units(codes) else np.arange(len(systems[0]))
    found: list[list[FloatArray]] = [[] for _ in systems]
    for counts in counts_of(int(units.max()) + 1, N_RESAMPLES):
        for values, known in zip(systems, found, strict=True):
            order = np.argsort(values)
            reached = np.cumsum(counts[:, units[order]], axis=1)
            first = np.argmax(reached >= share * reached[:, -1:] - 1e-9, axis=1)
            known.append(values[order[first]])
    return [np.concatenate(known) for known in found]
