"""Bounds on a mean of values that cannot leave a range: they hold at every n, whatever the distribution.

Wide, and so not the first choice; the answer where an approximation is in doubt (`llmops.stats.guard`): a difference
that is far beyond its threshold is then still seen, and systems that answer alike are still not worse by much.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import special

from llmops.errors import InvalidEvidence
from llmops.stats.interval import FloatArray, Interval, checked, checked_pairs

MAX_DIFFERING = 0.25
"""Share of cases beside the most common difference up to which that difference is what the bounds start from."""


def paired_bounded(a: npt.ArrayLike, b: npt.ArrayLike, level: float, span: float) -> Interval:
    """Interval of mean(b - a) over paired scores of independent cases, without an approximation.

    Where nearly all cases differ by one and the same amount, the share of the others is bounded exactly (Clopper and
    Pearson, Biometrika 26 (1934) 404-413), and these are taken to be as bad, or as good, as scores can be: "the rule of
    three". Else Hoeffding's bound (JASA 58 (1963) 13-30, theorem 2).

    Args:
        a: [N] baseline's score of each case, in [0, span].
        b: [N] candidate's score of the same cases, in [0, span].
        level: confidence of each bound, in (0.5, 1).
        span: the largest score there is.

    Raises:
        InvalidEvidence: the arrays do not pair up, hold fewer than 2 cases, or a score outside of its range.

    >>> found = paired_bounded([50.0] * 100, [50.0] * 100, level=0.95, span=100)
    >>> round(found.low, 2), round(found.high, 2)
    (-2.95, 2.95)
    """
    x, y = checked_pairs(a, b, ndim=1)
    if min(x.min(), y.min()) < 0 or max(x.max(), y.max()) > span * (1 + 1e-9):
        raise InvalidEvidence(f"statistics: a score lies outside of [0, {span:g}]; use paired_t")
    difference, level = y - x, checked(level)
    values, counts = np.unique(difference, return_counts=True)
    common, n_others = float(values[counts.argmax()]), len(x) - int(counts.max())
    if n_others <= MAX_DIFFERING * len(x):
        share = float(special.betaincinv(n_others + 1, len(x) - n_others, level))
        at = common * (1 - share)
        return _interval(difference, (at - share * span, at + share * span), level, "rule of three")
    half = 2 * span * math.sqrt(-math.log(1 - level) / (2 * len(x)))
    mean = float(difference.mean())
    bounds = max(-span, mean - half), min(span, mean + half)
    return _interval(difference, bounds, level, "hoeffding")


def _interval(difference: FloatArray, bounds: tuple[float, float], level: float, method: str) -> Interval:
    return Interval(
        float(difference.mean()), *bounds, level, len(difference), float(difference.std(ddof=1)), method
    )
