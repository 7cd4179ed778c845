"""What every interval is, the verdict it gives, and the checks that inputs pass. No interval is computed here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

import numpy as np
import numpy.typing as npt

from llmops.errors import BadRequest, InvalidEvidence

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
CorpusScore = Callable[[FloatArray], FloatArray]
"""A corpus metric as a function of summed statistics: [R, S] -> [R]."""
Labels = Sequence[str] | Sequence[int] | npt.NDArray[np.generic]
"""One label a case; cases with the same label are of one cluster."""

BoundVerdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True)
class Interval:
    """An estimate between two one-sided bounds, on the scale of the scores it came from.

    `level` is the confidence of each bound alone. `sd` is the standard deviation of one case's contribution, its
    cluster's share included: the standard error is sd / sqrt(n), so the error at another n can be foreseen.
    `n_clusters` is None where cases were taken as independent. `doubt` says why the bounds cannot be trusted to hold
    their level on these numbers (see `llmops.stats.guard`), and is None where they can.
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int
    sd: float
    method: str
    n_clusters: int | None = None
    doubt: str | None = None

    def scaled(self, factor: float) -> Interval:
        """The same interval in another unit; `factor` > 0, e.g. 100 from proportions to points."""
        estimate, low, high, sd = (x * factor for x in (self.estimate, self.low, self.high, self.sd))
        return replace(self, estimate=estimate, low=low, high=high, sd=sd)

    def shifted(self, by: float) -> Interval:
        """The same interval counted from another zero."""
        return replace(self, estimate=self.estimate + by, low=self.low + by, high=self.high + by)

    def mirrored(self) -> Interval:
        """The interval of the negative: what bounds from above then bounds from below.

        >>> Interval(0.2, 0.1, 0.4, level=0.95, n=80, sd=0.4, method="t").mirrored().low
        -0.4
        """
        return replace(self, estimate=-self.estimate, low=-self.high, high=-self.low)


def decide_bound(interval: Interval, threshold: float) -> BoundVerdict:
    """PASS when the whole interval lies above `threshold`, FAIL when it lies below, else INCONCLUSIVE.

    `threshold`, in the interval's unit, is -margin for non-inferiority and +by for superiority by more. An interval
    that is in doubt decides nothing.

    Raises:
        InvalidEvidence: a bound or the threshold is not finite; comparisons would read INCONCLUSIVE.

    >>> decide_bound(Interval(0.4, -0.1, 0.9, level=0.95, n=80, sd=2.7, method="t"), threshold=-0.5)
    'PASS'
    """
    if not all(map(math.isfinite, (interval.low, interval.high, threshold))):
        raise InvalidEvidence(f"decision: {interval} against {threshold} is not finite; check the scores")
    if interval.doubt is not None:
        return "INCONCLUSIVE"
    if interval.low > threshold:
        return "PASS"
    return "FAIL" if interval.high < threshold else "INCONCLUSIVE"


def checked(level: float) -> float:
    """The level, which must be a one-sided confidence."""
    if not 0.5 < level < 1:
        raise BadRequest(f"level: {level} is no one-sided confidence; use one in (0.5, 1), usually 0.95")
    return level


def checked_cases(values: npt.ArrayLike, ndim: int) -> FloatArray:
    """Finite numbers of two cases or more, with so many axes."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != ndim or len(x) < 2:
        raise InvalidEvidence(f"statistics: shape {x.shape}, not {ndim} axes of 2 cases or more; add cases")
    if not np.isfinite(x).all():
        case = int(np.argwhere(~np.isfinite(x))[0][0])
        raise InvalidEvidence(f"statistics: case {case} scores {x[case]}; leave out what has no score")
    return x


def checked_pairs(a: npt.ArrayLike, b: npt.ArrayLike, ndim: int) -> tuple[FloatArray, FloatArray]:
    """Two systems' numbers of the same cases."""
    x, y = checked_cases(a, ndim), checked_cases(b, ndim)
    if x.shape != y.shape:
        raise InvalidEvidence(f"statistics: {x.shape} and {y.shape} do not pair; score the same cases")
    return x, y


def checked_binary(values: npt.ArrayLike) -> FloatArray:
    """Zeros and ones of two cases or more."""
    x = checked_cases(values, ndim=1)
    wrong = x[(x != 0) & (x != 1)]
    if len(wrong):
        raise InvalidEvidence(f"statistics: {wrong[0]} is not 0 or 1; use paired_t for graded scores")
    return x


def cluster_codes(clusters: Labels | None, n: int) -> IntArray | None:
    """[N] the number of each case's cluster, from 0; None where no cluster is declared.

    Raises:
        InvalidEvidence: not one label a case.
    """
    if clusters is None:
        return None
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise InvalidEvidence(f"statistics: {labels.shape} cluster labels for {n} cases; give one a case")
    codes: IntArray = np.unique(labels, return_inverse=True)[1]
    return codes


def are_units(codes: IntArray | None) -> TypeGuard[IntArray]:
    """Whether there are clusters to count instead of cases: more than one, and fewer than cases."""
    return codes is not None and 1 < codes.max() + 1 < len(codes)


def of_cases(found: Interval, codes: IntArray | None) -> Interval:
    """An interval that counted cases, whose clusters are each one case, or one alone: then it is in doubt."""
    if codes is None:
        return found
    doubt = found.doubt
    if codes.max() == 0:
        doubt = f"all {found.n} cases are of one cluster, which says nothing about others"
    return replace(found, n_clusters=int(codes.max()) + 1, doubt=doubt)
