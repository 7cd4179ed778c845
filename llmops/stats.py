"""Intervals, paired comparisons and sample sizes: what a release gate decides by.

Every interval has two one-sided bounds: `level=0.95` means that each bound is wrong for 5 % of samples, so
the pair is a two-sided 90 % interval. A difference is candidate minus baseline (`b - a`) over the same cases
in the same order. Cases are taken as independent. Nothing here reads or writes anything.

Which interval, and why (`make test-stats` measures each claim):

* means: Student's t on per-case differences;
* proportions: Tango's score interval, which keeps its level where few pairs disagree and Wald's does not;
* corpus metrics (BLEU, chrF): delete-one jackknife over sufficient statistics with a t quantile. It needs no
  seed and keeps its 5 % under the null; on BLEU near 0 the percentile bootstrap rejects 7 to 9 %, and on any
  corpus sacrebleu's paired bootstrap test about twice what it says.

Shapes: N cases, S statistics, R rows that are scored together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from llmops.errors import BadRequest, InvalidEvidence

FloatArray = npt.NDArray[np.float64]
CorpusScore = Callable[[FloatArray], FloatArray]
"""A corpus metric as a function of summed statistics: [R, S] -> [R]."""

BoundVerdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True)
class Interval:
    """An estimate between two one-sided bounds, on the scale of the scores it came from.

    `level` is the confidence of each bound alone. `sd` is the standard deviation of one case's contribution:
    the standard error is sd / sqrt(n), so the error at another n can be foreseen.
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int
    sd: float
    method: str

    def scaled(self, factor: float) -> Interval:
        """The same interval in another unit; `factor` > 0, e.g. 100 from proportions to points."""
        estimate, low, high, sd = (x * factor for x in (self.estimate, self.low, self.high, self.sd))
        return replace(self, estimate=estimate, low=low, high=high, sd=sd)


def mean_interval(values: npt.ArrayLike, level: float) -> Interval:
    """Student's t interval of a mean; a point where all values are equal.

    Args:
        values: [N] one number a case, N >= 2.
        level: confidence of each bound, in (0.5, 1).

    Raises:
        InvalidEvidence: fewer than 2 values, or one that is not finite: no error can be estimated from them.

    >>> interval = mean_interval([1.0, 2.0, 3.0], level=0.975)
    >>> round(interval.low, 3), round(interval.high, 3)
    (-0.484, 4.484)
    """
    x = _cases(values, ndim=1)
    if np.all(x == x[0]):  # np.mean of equal values may be off by rounding, which would pass for variance
        return _t_interval(float(x[0]), 0.0, len(x), level, "t")
    return _t_interval(float(x.mean()), float(x.std(ddof=1)), len(x), level, "t")


def paired_t(a: npt.ArrayLike, b: npt.ArrayLike, level: float) -> Interval:
    """Student's t interval of mean(b - a) over paired per-case scores.

    Args:
        a: [N] baseline's score of each case.
        b: [N] candidate's score of the same cases.
        level: confidence of each bound, in (0.5, 1).

    Raises:
        InvalidEvidence: the arrays do not pair up, or hold fewer than 2 cases or a value not finite.
    """
    x, y = _pairs(a, b, ndim=1)
    return replace(mean_interval(y - x, level), method="paired t")


def proportion_interval(hits: npt.ArrayLike, level: float) -> Interval:
    """Jeffreys interval of a proportion, which keeps one-sided levels where Wald's and Wilson's do not.

    Source: Cai, One-sided confidence intervals in discrete distributions, J. Stat. Plan. Inf. 131 (2005).

    Args:
        hits: [N] zeros and ones (or booleans).
        level: confidence of each bound, in (0.5, 1).

    Raises:
        InvalidEvidence: fewer than 2 values, or one that is neither 0 nor 1.
    """
    x = _binary(hits)
    n, k = len(x), int(x.sum())
    tail = 1 - _checked(level)
    low = float(special.betaincinv(k + 0.5, n - k + 0.5, tail)) if k else 0.0
    high = float(special.betaincinv(k + 0.5, n - k + 0.5, 1 - tail)) if k < n else 1.0
    p = (k + 0.5) / (n + 1)
    return Interval(k / n, low, high, level, n, math.sqrt(p * (1 - p)), "jeffreys")


def paired_binary(a: npt.ArrayLike, b: npt.ArrayLike, level: float) -> Interval:
    """Tango's score interval of the difference of two paired proportions, p_b - p_a.

    At a difference of 0 it is McNemar's test without continuity correction. From 50 cases on, the exact error
    of `low` at nominal 5 % is below 6.5 % for true differences up to 0, however few pairs disagree (Wald: 60,
    Bonett and Price: 10); above 0 it nears 9 % where the few disagreements are almost all gains. `sd` counts
    one more disagreement each way, as Bonett and Price (2012) do: none is not certainty.

    Source: Tango, Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design, Statistics in Medicine 17 (1998) 891-908.

    Args:
        a: [N] 0 or 1 of the baseline for each case.
        b: [N] 0 or 1 of the candidate for the same cases.
        level: confidence of each bound, in (0.5, 1).

    Raises:
        InvalidEvidence: the arrays do not pair up, or hold fewer than 2 cases or a value not 0 or 1.
    """
    x, y = _pairs(_binary(a), _binary(b), ndim=1)
    n, n_gains, n_losses = len(x), int(np.sum(y > x)), int(np.sum(y < x))
    z = float(special.ndtri(_checked(level)))
    low = _tango_low(n_gains, n_losses, n, z)
    high = -_tango_low(n_losses, n_gains, n, z)
    gain, loss = (n_gains + 1) / (n + 2), (n_losses + 1) / (n + 2)
    sd = math.sqrt(gain + loss - (gain - loss) ** 2)
    return Interval((n_gains - n_losses) / n, low, high, level, n, sd, "tango")


def corpus_interval(stats: npt.ArrayLike, score: CorpusScore, level: float) -> Interval:
    """Jackknife t interval of one system's corpus metric.

    Args:
        stats: [N, S] sufficient statistics of each case.
        score: the metric of summed statistics, [R, S] -> [R].
        level: confidence of each bound, in (0.5, 1).

    Raises:
        InvalidEvidence: fewer than 2 cases, or a statistic that is not finite.
    """
    x = _cases(stats, ndim=2)
    total = x.sum(axis=0)
    return _jackknife(float(score(total[None])[0]), score(total - x), level, "jackknife t")


def paired_corpus(
    stats_a: npt.ArrayLike, stats_b: npt.ArrayLike, score: CorpusScore, level: float
) -> Interval:
    """Jackknife t interval of the difference of two systems' corpus metric, b - a.

    Leaves the same case out of both; deterministic. Below about 100 cases a bound on a metric made of rare
    events (BLEU near 0 against a much better system) can be wrong 10 % of the time at nominal 5 %.

    Source: Tukey 1958; Efron and Stein, The jackknife estimate of variance, Ann. Statist. 9 (1981) 586-596.

    Args:
        stats_a: [N, S] the baseline's sufficient statistics of each case.
        stats_b: [N, S] the candidate's, of the same cases.
        score: the metric of summed statistics, [R, S] -> [R].
        level: confidence of each bound, in (0.5, 1).

    Raises:
        InvalidEvidence: the arrays do not pair up, or hold fewer than 2 cases or a value not finite.
    """
    x, y = _pairs(stats_a, stats_b, ndim=2)
    total_a, total_b = x.sum(axis=0), y.sum(axis=0)
    estimate = float(score(total_b[None])[0] - score(total_a[None])[0])
    return _jackknife(estimate, score(total_b - y) - score(total_a - x), level, "paired jackknife t")


def decide_bound(interval: Interval, threshold: float) -> BoundVerdict:
    """PASS when the whole interval lies above `threshold`, FAIL when it lies below, else INCONCLUSIVE.

    `threshold`, in the interval's unit, is -margin for non-inferiority and +by for superiority by more.

    Raises:
        InvalidEvidence: a bound or the threshold is not finite; comparisons would read INCONCLUSIVE.

    >>> decide_bound(Interval(0.4, -0.1, 0.9, level=0.95, n=80, sd=2.7, method="t"), threshold=-0.5)
    'PASS'
    """
    if not all(map(math.isfinite, (interval.low, interval.high, threshold))):
        raise InvalidEvidence(f"decision: {interval} against {threshold} is not finite; check the scores")
    if interval.low > threshold:
        return "PASS"
    return "FAIL" if interval.high < threshold else "INCONCLUSIVE"


def n_needed(
    interval: Interval, threshold: float, power: float = 0.8, assumed: float | None = None
) -> int | None:
    """How many cases in all would let the lower bound clear `threshold` with probability `power`.

    Rule: n = ((z_level + z_power) * sd / (difference - threshold))^2 rounded up, with the observed sd. The
    true difference is taken to be the observed one (after INCONCLUSIVE the answer is more than the n already
    seen): a forecast from noisy numbers, not a promise. `assumed=0.0` gives the classic planning number of
    non-inferiority instead: two systems that are in truth equal.

    Args:
        interval: the difference seen so far, n cases.
        threshold: -margin or +by, in the interval's unit.
        power: probability of a PASS at the returned n, in (0, 1).
        assumed: true difference to plan for; None takes the observed one.

    Returns:
        Cases in all, or None when the difference does not lie above the threshold: more cases are then not
        expected to end in a PASS, however many.

    >>> n_needed(Interval(0.0, -0.2, 0.2, level=0.95, n=50, sd=0.7**0.5, method="t"), threshold=-0.1)
    433
    """
    if not 0 < power < 1:
        raise BadRequest(f"n_needed: power {power} is not a probability; use one in (0, 1), usually 0.8")
    distance = (interval.estimate if assumed is None else assumed) - threshold
    if distance <= 0:
        return None
    z = float(special.ndtri(interval.level) + special.ndtri(power))
    n = math.ceil((z * interval.sd / distance) ** 2)
    inconclusive = assumed is None and decide_bound(interval, threshold) == "INCONCLUSIVE"
    return max(n, interval.n + 1 if inconclusive else 2)


def _t_interval(estimate: float, sd: float, n: int, level: float, method: str) -> Interval:
    half = float(special.stdtrit(n - 1, _checked(level))) * sd / math.sqrt(n)
    return Interval(estimate, estimate - half, estimate + half, level, n, sd, method)


def _jackknife(estimate: float, left_out: FloatArray, level: float, method: str) -> Interval:
    sd = math.sqrt((len(left_out) - 1) * float(np.sum((left_out - left_out.mean()) ** 2)))
    return _t_interval(estimate, sd, len(left_out), level, method)


def _tango_low(n_gains: int, n_losses: int, n: int, z: float) -> float:
    """The smallest difference in [-1, estimate] that the score test does not reject, by bisection."""
    low, high = -1.0, (n_gains - n_losses) / n
    for _ in range(60):
        middle = (low + high) / 2
        if _tango_score(n_gains, n_losses, n, middle) > z:
            low = middle
        else:
            high = middle
    return high


def _tango_score(n_gains: int, n_losses: int, n: int, d: float) -> float:
    """Score statistic of a true difference d, the loss probability being its maximum likelihood given d."""
    b = (2 * n - n_gains + n_losses) * d - n_gains - n_losses
    c = -n_losses * d * (1 - d)
    loss = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * loss + d * (1 - d))
    excess = n_gains - n_losses - n * d
    if variance > 0:
        return excess / math.sqrt(variance)
    return math.copysign(math.inf, excess) if excess else 0.0


def _checked(level: float) -> float:
    if not 0.5 < level < 1:
        raise BadRequest(f"level: {level} is no one-sided confidence; use one in (0.5, 1), usually 0.95")
    return level


def _cases(values: npt.ArrayLike, ndim: int) -> FloatArray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != ndim or len(x) < 2:
        raise InvalidEvidence(f"statistics: shape {x.shape}, not {ndim} axes of 2 cases or more; add cases")
    if not np.isfinite(x).all():
        case = int(np.argwhere(~np.isfinite(x))[0][0])
        raise InvalidEvidence(f"statistics: case {case} scores {x[case]}; leave out what has no score")
    return x


def _pairs(a: npt.ArrayLike, b: npt.ArrayLike, ndim: int) -> tuple[FloatArray, FloatArray]:
    x, y = _cases(a, ndim), _cases(b, ndim)
    if x.shape != y.shape:
        raise InvalidEvidence(f"statistics: {x.shape} and {y.shape} do not pair; score the same cases")
    return x, y


def _binary(values: npt.ArrayLike) -> FloatArray:
    x = _cases(values, ndim=1)
    wrong = x[(x != 0) & (x != 1)]
    if len(wrong):
        raise InvalidEvidence(f"statistics: {wrong[0]} is not 0 or 1; use paired_t for graded scores")
    return x
