"""The largest gap between declared groups, for gates on bias: between their mean scores or mean paired differences.

The upper bound asks no correction for the number of pairs: it is the largest of the pairs' upper bounds, and for the
true gap to lie above it that of the truly most distant pair must err. The lower bound is simultaneous: the pair that
looks most distant was chosen by looking, so it takes a quantile of the studentized range (Games and Howell: unequal
variances, Welch's degrees of freedom for each pair). Pairs are moved outwards on skewed values as in
`llmops.stats.student`.

Sources: Games and Howell, Pairwise multiple comparison procedures with unequal n's and/or variances, J. Educ. Stat. 1
(1976) 113-125; Berger, Multiparameter hypothesis testing and acceptance sampling, Technometrics 24 (1982) 295-300.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from llmops.errors import InvalidEvidence
from llmops.stats.guard import student_doubt
from llmops.stats.interval import FloatArray, Interval, Labels, checked, checked_cases, cluster_codes
from llmops.stats.student import Error, Parts, error_of, quantiles

_QUANTILE_DF = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 25, 30, 40, 60, 100, 200, 1000)


@dataclass(frozen=True)
class Gap:
    """The two groups that lie furthest apart, and the interval of the largest gap between any two."""

    highest: str
    lowest: str
    interval: Interval


@dataclass(frozen=True, eq=False)
class _Group:
    name: str
    mean: float
    error: Error
    parts: FloatArray  # [G] what each cluster adds to the mean's error; empty without clusters


def largest_gap(values: npt.ArrayLike, groups: Labels, level: float, clusters: Labels | None = None) -> Gap:
    """The largest difference between two groups' means, with a bound from above and one from below.

    Args:
        values: [N] a score, or a paired difference, of each case.
        groups: [N] which declared group each case belongs to; two groups or more, of two cases or more each.
        level: confidence of each bound, in (0.5, 1).
        clusters: [N] each case's cluster, which may lie in several groups; None where cases are independent.

    Raises:
        InvalidEvidence: fewer than two groups, or a group of one case: it has no error to estimate.

    >>> gap = largest_gap([*range(10), *range(3, 13)], ["a"] * 10 + ["b"] * 10, level=0.95)
    >>> gap.highest, gap.lowest, gap.interval.estimate
    ('b', 'a', 3.0)
    """
    x = checked_cases(values, ndim=1)
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    if codes.shape != x.shape or len(names) < 2:
        raise InvalidEvidence(
            f"gap: {len(names)} groups for {len(x)} cases; label each case, with two groups or more"
        )
    small = next((str(names[i]) for i, n in enumerate(np.bincount(codes)) if n < 2), None)
    if small is not None:
        raise InvalidEvidence(f"gap: group {small} has one case; give each group two or more")
    units = cluster_codes(clusters, len(x))
    n_units = 0 if units is None else int(units.max()) + 1
    found = [
        _group(str(name), x[codes == i], None if units is None else units[codes == i], n_units)
        for i, name in enumerate(names)
    ]
    gaps = [_pair(a, b, level, len(found)) for a, b in combinations(found, 2)]
    highest, lowest = max(found, key=lambda g: g.mean), min(found, key=lambda g: g.mean)
    estimate = highest.mean - lowest.mean
    interval = Interval(
        estimate=estimate,
        low=max(0.0, *(gap.low for gap in gaps)),
        high=max(gap.high for gap in gaps),
        level=level,
        n=len(x),
        sd=max(gaps, key=lambda gap: gap.estimate).se * math.sqrt(len(x)),
        method="largest gap, games-howell",
        n_clusters=None if units is None else n_units,
        doubt=next((gap.doubt for gap in gaps if gap.doubt is not None), None),
    )
    return Gap(highest.name, lowest.name, interval)


@dataclass(frozen=True)
class _Bounds:
    estimate: float
    low: float
    high: float
    se: float
    doubt: str | None


def _group(name: str, x: FloatArray, units: npt.NDArray[np.intp] | None, n_units: int) -> _Group:
    mean = float(x[0]) if np.all(x == x[0]) else float(x.mean())
    if units is None:
        return _Group(name, mean, error_of(Parts(mean, (x - mean) / len(x))), np.empty(0))
    sizes = np.bincount(units, minlength=n_units).astype(np.float64)
    parts = (np.bincount(units, weights=x, minlength=n_units) - sizes * mean) / len(x)
    there = sizes > 0
    if there.sum() < 2:
        return _Group(name, mean, Error(0.0, 1.0, 0.0), parts)
    error = error_of(Parts(mean, parts[there], sizes[there]))
    # Scaled so that their squares sum to the group's variance, and products over shared clusters to the covariance.
    return _Group(name, mean, error, parts / math.sqrt(float((parts**2).sum()) or 1.0) * error.se)


def _pair(a: _Group, b: _Group, level: float, n_groups: int) -> _Bounds:
    """Both bounds of |mean a - mean b|; the lower one holds for all pairs at once."""
    if a.mean < b.mean:
        a, b = b, a
    covariance = float(a.parts @ b.parts) if len(a.parts) else 0.0
    variance = a.error.se**2 + b.error.se**2
    paired = max(variance - 2 * covariance, 0.0)
    se = math.sqrt(paired)
    df = (
        variance**2 / max(a.error.se**4 / a.error.df + b.error.se**4 / b.error.df, 1e-300)
        if variance
        else 1.0
    )
    df = max(df, min(a.error.df, b.error.df))
    third = a.error.skewness * a.error.se**3 - b.error.skewness * b.error.se**3
    if len(a.parts):  # what both groups share of a cluster cancels
        third = float(((a.parts - b.parts) ** 3).sum())
    error = Error(se, df, third / se**3 if se else 0.0)
    below, above = quantiles(error, level)
    simultaneous = _range_quantile(level, n_groups, df) / math.sqrt(2)
    student = float(special.stdtrit(df, checked(level)))
    alone = (student_doubt(g.error.se, 0.0, round(g.error.df) + 1, None) for g in (a, b))
    doubt = next((f"group {g.name}: {d}" for g, d in zip((a, b), alone, strict=True) if d is not None), None)
    doubt = doubt or student_doubt(se, error.skewness, round(min(a.error.df, b.error.df)) + 1, None)
    distance = a.mean - b.mean
    return _Bounds(
        estimate=distance,
        low=distance - simultaneous * below / student * se,
        high=distance + above * se,
        se=se,
        doubt=doubt,
    )


def _range_quantile(level: float, n_groups: int, df: float) -> float:
    """A quantile of the studentized range, at the nearest smaller tabulated degrees of freedom (conservative)."""
    return _tabulated(level, n_groups, max((d for d in _QUANTILE_DF if d <= df), default=1))


@lru_cache(maxsize=1024)
def _tabulated(level: float, n_groups: int, df: int) -> float:
    return float(stats.studentized_range.ppf(level, n_groups, df))
