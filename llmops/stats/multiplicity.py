"""p-values of intervals, and their adjustment where one improvement among several is enough to claim something.

"All checks must hold" needs no correction: each must err for the whole to err. "Any improved" and slices that nobody
declared do.

Sources: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979) 65-70; Benjamini
and Hochberg, Controlling the false discovery rate, J. R. Stat. Soc. B 57 (1995) 289-300.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llmops.errors import InvalidEvidence
from llmops.stats.interval import FloatArray, Interval

_LEAST = 1e-9
"""Smaller p-values are given as this."""


def p_value(interval_at: Callable[[float], Interval], threshold: float) -> float:
    """The one-sided p-value of "the truth is not above `threshold`", by inverting any kind of interval.

    The smallest error at which the lower bound lies above the threshold, so that p < 1 - level and a PASS at that level
    are one. Evidence in doubt has p = 1: it shows nothing.

    Args:
        interval_at: the interval at a level, e.g. `lambda level: paired_t(a, b, level)`.
        threshold: -margin or +by, in the interval's unit.

    >>> from llmops.stats import mean_interval
    >>> x = [-3.0, -2.0, -1.0, -0.5, 0.0, 1.0, 1.5, 2.0, 3.0, 4.0]
    >>> round(p_value(lambda level: mean_interval(x, level), threshold=-0.8), 4)
    0.048
    """
    if interval_at(0.95).doubt is not None:
        return 1.0
    if interval_at(0.5 + _LEAST).low <= threshold:
        return 1 - _least_error(lambda level: interval_at(level).high < threshold)
    return _least_error(lambda level: interval_at(level).low > threshold)


def holm(p_values: Sequence[float]) -> FloatArray:
    """Holm's adjusted p-values: below alpha with probability alpha at most, if nothing is true, for any dependence.

    >>> holm([0.01, 0.04, 0.03]).round(6).tolist()
    [0.03, 0.06, 0.06]
    """
    p = _checked(p_values)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return _put_back(stepped, order)


def benjamini_hochberg(p_values: Sequence[float]) -> FloatArray:
    """Benjamini and Hochberg's adjusted p-values: of those below q at most a share q is false, where independent.

    >>> benjamini_hochberg([0.01, 0.04, 0.03]).round(6).tolist()
    [0.03, 0.04, 0.04]
    """
    p = _checked(p_values)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    return _put_back(np.minimum.accumulate(scaled[::-1])[::-1], order)


def _least_error(rejects: Callable[[float], bool]) -> float:
    """The smallest error in (0, 0.5) at which a bound rejects; 0.5 where none does."""
    low, high = _LEAST, 0.5
    if rejects(1 - low):
        return low
    while high - low > 1e-9 and high / low > 1 + 1e-7:
        middle = (low * high) ** 0.5 if low < 1e-3 * high else (low + high) / 2
        if rejects(1 - middle):
            high = middle
        else:
            low = middle
    return high


def _put_back(adjusted: FloatArray, order: np.ndarray[tuple[int], np.dtype[np.intp]]) -> FloatArray:
    found = np.empty(len(order))
    found[order] = np.minimum(adjusted, 1.0)
    return found


def _checked(p_values: Sequence[float]) -> FloatArray:
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise InvalidEvidence(f"p-values: {list(p_values)} are not one or more numbers from 0 to 1")
    return p
