"""By how much cases of one cluster, and votes of one rater, raise the variance of a calibrated win rate.

The estimate's error is a sum of parts: a vote's, and, times the judge's weight, an unrated case's. Parts of one cluster
add up to one independent part, rated cases and others together; so do the votes of one rater. Both kinds of cluster
count as in `llmops.stats.wins` (Cameron, Gelbach and Miller), each in the bias-reduced form of Bell and McCaffrey.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from llmops.stats import FloatArray
from llmops.stats.guard import MIN_UNITS
from llmops.stats.interval import IntArray
from llmops.stats.student import Parts, degrees_of_freedom, variance_of

FAR = 0.25
"""A case whose part lies so far from the common one, in wins, differs from it: half a step of a vote."""


@dataclass(frozen=True, eq=False)
class Influence:
    """The parts of the error of a mean over n rated cases: of each vote [V] and of each other case [N].

    `moved` [n] is what each rated case says, in wins. `case` [V] is a vote's case. `clusters` are those of the rated
    [n] and of the other cases [N], from 0, and None where cases are independent; `raters` [V] likewise of votes.
    """

    votes: FloatArray
    others: FloatArray
    moved: FloatArray
    case: IntArray
    clusters: tuple[IntArray, IntArray] | None = None
    raters: IntArray | None = None


@dataclass(frozen=True)
class Alike:
    """A design effect, at least 1, and the t quantile over the normal one, squared."""

    effect: float
    quantile: float


def alike(found: Influence, level: float) -> Alike:
    """What clusters and raters cost; with neither, what estimating a variance and a weight costs."""
    n = len(found.moved)
    df, variances = float(n - 2), [_by_case(found)]
    if found.clusters is not None:
        sizes = np.bincount(found.clusters[0]).astype(float)
        df = degrees_of_freedom(sizes[sizes > 0]) - 1
        variances.append(_by_cluster(found, found.clusters))
    if found.raters is not None:
        df = min(df, degrees_of_freedom(_sizes(found, found.raters)))
        by_rater = _by(found, found.raters)
        both = variances[-1] + by_rater - _by(found, _cells(found, found.raters))
        variances += [by_rater, both]
    single = variances[0]
    effect = max(1.0, max(variances) / single) if single > 0 else 1.0
    quantile = float(special.stdtrit(max(df, 1.0), level) / special.ndtri(level)) ** 2
    return Alike(max(effect, _least_effect(found)), quantile)


def _by_case(found: Influence) -> float:
    """The variance where every case stands alone."""
    n = len(found.moved)
    own = np.bincount(found.case, weights=found.votes)
    return float(np.sum(own**2)) * n / (n - 1) + float(np.sum(found.others**2))


def _by_cluster(found: Influence, clusters: tuple[IntArray, IntArray]) -> float:
    rated, others = clusters
    n = int(max(rated.max(), others.max(initial=0))) + 1
    parts: FloatArray = np.bincount(rated[found.case], weights=found.votes, minlength=n).astype(np.float64)
    parts += np.bincount(others, weights=found.others, minlength=n)
    return variance_of(Parts(0.0, parts, np.bincount(rated, minlength=n).astype(float)))


def _by(found: Influence, codes: IntArray) -> float:
    """The variance by clusters of votes; parts of other cases are nobody's."""
    parts = np.bincount(codes, weights=found.votes).astype(np.float64)
    return variance_of(Parts(0.0, parts, _sizes(found, codes)))


def _sizes(found: Influence, codes: IntArray) -> FloatArray:
    """How many cases each cluster of votes comes to, a case's votes sharing it."""
    n_votes = np.bincount(found.case)
    sizes: FloatArray = np.bincount(codes, weights=1 / n_votes[found.case]).astype(np.float64)
    return sizes


def _cells(found: Influence, raters: IntArray) -> IntArray:
    """[V] the number of each vote's pair of cluster (or case) and rater."""
    units = found.case if found.clusters is None else found.clusters[0][found.case]
    codes: IntArray = np.unique(units * (raters.max() + 1) + raters, return_inverse=True)[1]
    return codes


def _least_effect(found: Influence) -> float:
    """Cases of a cluster count as alike where fewer than 8 clusters hold a case that differs: they show it badly."""
    if found.clusters is None:
        return 1.0
    codes = found.clusters[0]
    differing = np.abs(found.moved - np.median(found.moved)) > FAR
    if len(np.unique(codes[differing])) >= MIN_UNITS:
        return 1.0
    sizes = np.bincount(codes).astype(float)
    return float(np.sum(sizes**2) / len(codes))
