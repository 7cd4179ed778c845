"""Looking at evidence before all of it is in, without spending more than alpha: declared looks and their levels.

Looks are declared as fractions of the evidence (0.5, 1: halfway and at the end). At look k the interval is made at
`look_level`; a PASS at any look then is wrong for at most alpha of samples, for every threshold that the lower bound
is held against. These are repeated confidence intervals. Nothing has to stop at any look: futility is not bound.

Boundaries follow from Lan and DeMets' spending functions by numerical integration over the sum of independent normal
increments (Armitage, McPherson and Rowe).

Sources: Jennison and Turnbull, Group Sequential Methods (2000), chapters 7, 9 and 19; Lan and DeMets, Discrete
sequential boundaries for clinical trials, Biometrika 70 (1983) 659-663; Armitage, McPherson and Rowe, J. R. Stat. Soc.
A 132 (1969) 235-244.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, special

from llmops.errors import BadRequest
from llmops.stats.interval import FloatArray

Spending = Literal["obrien_fleming", "pocock"]
"""How alpha is spent: hardly anything at early looks, or evenly."""

MAX_LOOKS = 20
_REACH = 8.5  # standard deviations of the sum beyond which nothing is integrated
_CAP = 1 - 1e-12  # a level above this is 1 in rounding, which no quantile has


def look_level(
    fractions: Sequence[float], look: int, alpha: float = 0.05, spending: Spending = "obrien_fleming"
) -> float:
    """The one-sided confidence of the bound at a declared look.

    Args:
        fractions: share of the evidence at each look, increasing, the last 1.
        look: which look this is, from 1.
        alpha: the error to spend over all looks, one-sided, in (0, 0.5).
        spending: how.

    Raises:
        BadRequest: the looks are not declared so.

    >>> [round(look_level((0.5, 1.0), look), 4) for look in (1, 2)]
    [0.9944, 0.9518]
    """
    declared = boundaries(tuple(fractions), alpha, spending)
    if not 1 <= look <= len(declared):
        raise BadRequest(f"look: {look} is not one of {len(declared)} declared looks; count from 1")
    return min(float(special.ndtr(declared[look - 1])), _CAP)


def spent(fraction: float, alpha: float, spending: Spending = "obrien_fleming") -> float:
    """The part of alpha that is spent once so much of the evidence is in.

    >>> round(spent(0.5, 0.05), 5), spent(1.0, 0.05)
    (0.00557, 0.05)
    """
    if fraction >= 1:
        return alpha
    if spending == "pocock":
        return alpha * math.log1p((math.e - 1) * fraction)
    return float(2 * special.ndtr(special.ndtri(alpha / 2) / math.sqrt(fraction)))


@lru_cache(maxsize=256)
def boundaries(
    fractions: tuple[float, ...], alpha: float, spending: Spending = "obrien_fleming"
) -> tuple[float, ...]:
    """The normal quantile that the statistic of each look must exceed.

    Raises:
        BadRequest: the looks are not declared as `look_level` says.

    >>> [round(b, 3) for b in boundaries((0.2, 0.4, 0.6, 0.8, 1.0), 0.025)]
    [4.877, 3.357, 2.68, 2.29, 2.031]
    """
    _check(fractions, alpha, spending)
    found: list[float] = []
    grid, weight = np.zeros(1), np.ones(1)
    before = used = 0.0
    for fraction in fractions:
        step = math.sqrt(fraction - before)
        share = spent(fraction, alpha, spending) - used
        used += share

        def excess(limit: float, grid: FloatArray, weight: FloatArray, step: float, share: float) -> float:
            return float(weight @ special.ndtr((grid - limit) / step)) / share - 1

        reach = _REACH * 3 * math.sqrt(fraction)
        limit = float(optimize.brentq(excess, -reach, reach, args=(grid, weight, step, share), xtol=1e-12))
        found.append(limit / math.sqrt(fraction))
        grid, weight = _carried(grid, weight, step, fraction, limit)
        before = fraction
    return tuple(found)


def crossing(fractions: Sequence[float], limits: Sequence[float], drift: float = 0.0) -> float:
    """Probability that the statistic exceeds its limit at one look or another.

    Args:
        fractions: share of the evidence at each look, increasing.
        limits: normal quantile of each look.
        drift: expectation of the statistic at fraction 1; 0 under the null.

    >>> round(crossing((1.0,), (1.6448536,), drift=0.0), 6)
    0.05
    """
    grid, weight = np.zeros(1), np.ones(1)
    before = total = 0.0
    for fraction, quantile in zip(fractions, limits, strict=True):
        step, moved = math.sqrt(fraction - before), drift * (fraction - before)
        limit = quantile * math.sqrt(fraction)
        total += float(weight @ special.ndtr((grid + moved - limit) / step))
        grid, weight = _carried(grid + moved, weight, step, fraction, limit)
        before = fraction
    return total


def _carried(
    grid: FloatArray, weight: FloatArray, step: float, fraction: float, limit: float
) -> tuple[FloatArray, FloatArray]:
    """The density of the sum after a look, on Gauss-Legendre nodes below its limit, times the nodes' weights.

    A weight is density times quadrature weight, so that an expectation is a dot product.
    """
    centre = float(weight @ grid) / max(float(weight.sum()), 1e-300)
    lowest = min(centre, limit) - _REACH * math.sqrt(fraction)
    highest = min(limit, centre + _REACH * math.sqrt(fraction))
    nodes, quadrature = _legendre(min(1201, max(121, 8 * math.ceil((highest - lowest) / step))))
    half = (highest - lowest) / 2
    new = lowest + half * (nodes + 1)
    density = np.exp(-0.5 * ((new[:, None] - grid) / step) ** 2) @ weight / (step * math.sqrt(2 * math.pi))
    return new, density * quadrature * half


@lru_cache(maxsize=64)
def _legendre(n: int) -> tuple[FloatArray, FloatArray]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return nodes, weights


def _check(fractions: tuple[float, ...], alpha: float, spending: str) -> None:
    increasing = all(a < b for a, b in zip((0.0, *fractions), fractions, strict=False))
    if not fractions or len(fractions) > MAX_LOOKS or not increasing or fractions[-1] != 1:
        raise BadRequest(
            f"looks: {list(fractions)} are not 1 to {MAX_LOOKS} increasing shares of the evidence that end at 1"
        )
    if not 0 < alpha < 0.5:
        raise BadRequest(f"looks: alpha {alpha} is no one-sided error; use one in (0, 0.5), usually 0.05")
    if spending not in ("obrien_fleming", "pocock"):
        raise BadRequest(f"looks: spending {spending} is not known; use obrien_fleming or pocock")
