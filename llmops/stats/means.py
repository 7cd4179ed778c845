"""Intervals of means and of mean paired differences, of independent cases or of clusters of cases.

Which interval, and why, is told in `llmops.stats.student`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from llmops.stats.interval import (
    FloatArray,
    Interval,
    Labels,
    are_units,
    checked_cases,
    checked_pairs,
    cluster_codes,
    of_cases,
)
from llmops.stats.student import Parts, student


def mean_interval(values: npt.ArrayLike, level: float, clusters: Labels | None = None) -> Interval:
    """Interval of a mean: Student's t, moved outwards on skewed values; with clusters, they are the units.

    A point, and in doubt, where all values are equal.

    Args:
        values: [N] one number a case, N >= 2.
        level: confidence of each bound, in (0.5, 1).
        clusters: [N] each case's cluster; None where cases are independent.

    Raises:
        InvalidEvidence: fewer than 2 values, or a value that is not finite: no error can be estimated.

    >>> interval = mean_interval([1.0, 2.0, 3.0], level=0.975)
    >>> round(interval.low, 3), round(interval.high, 3)
    (-0.484, 4.484)
    """
    x = checked_cases(values, ndim=1)
    codes = cluster_codes(clusters, len(x))
    if not are_units(codes):
        return of_cases(student(_case_parts(x), level, len(x), "t"), codes)
    n_each = np.bincount(codes).astype(np.float64)
    totals = np.bincount(codes, weights=x)
    mean = _mean(x)
    parts = Parts(mean, (totals - n_each * mean) / len(x), n_each, _n_differing(totals / n_each))
    return student(parts, level, len(x), "clustered t")


def paired_t(a: npt.ArrayLike, b: npt.ArrayLike, level: float, clusters: Labels | None = None) -> Interval:
    """Interval of mean(b - a) over paired per-case scores: `mean_interval` of the differences.

    Args:
        a: [N] baseline's score of each case.
        b: [N] candidate's score of the same cases.
        level: confidence of each bound, in (0.5, 1).
        clusters: [N] each case's cluster; None where cases are independent.

    Raises:
        InvalidEvidence: the arrays do not pair up, or hold fewer than 2 cases or a value not finite.
    """
    x, y = checked_pairs(a, b, ndim=1)
    found = mean_interval(y - x, level, clusters)
    return replace(found, method=f"paired {found.method}")


def _case_parts(x: FloatArray) -> Parts:
    mean = _mean(x)
    return Parts(mean, (x - mean) / len(x), None, _n_differing(x))


def _mean(x: FloatArray) -> float:
    # np.mean of equal values may be off by rounding, which would pass for variance
    return float(x[0]) if np.all(x == x[0]) else float(x.mean())


def _n_differing(x: FloatArray) -> int:
    """How many values are not the median, which is the most common value wherever few others are."""
    ordered = np.sort(x)
    return int(np.count_nonzero(x != ordered[len(x) // 2]))
