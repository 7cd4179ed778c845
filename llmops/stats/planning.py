"""How many cases or votes a gate needs, before they are made (`Plan`) and after they were too few (`n_needed`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy import special

from llmops.errors import BadRequest
from llmops.stats.binary import HALF_STEP
from llmops.stats.interval import Interval, checked, decide_bound
from llmops.stats.looks import Spending, boundaries, crossing

MAX_N = 100_000_000
"""No plan asks for more."""


@dataclass(frozen=True)
class Plan:
    """A one-sided test that is still to be made, and what is assumed of the truth.

    `sd` is the standard deviation of one case's contribution on the scale of `threshold`: a pilot's `Interval.sd`, with
    its clusters' share, or `binary_sd`. `null_sd` is the same where the truth is the threshold, None for as much.
    `step` is one step of the estimate times n: 1 for paired binary outcomes, 0.5 for a win rate, 0 for scores.
    `per_cluster` cases are of one cluster. `looks` are fractions of the n that is planned, with what `spending` spends
    at each; one look at the end when empty.
    """

    threshold: float
    sd: float
    difference: float = 0.0
    level: float = 0.95
    null_sd: float | None = None
    step: float = 0.0
    per_cluster: float = 1.0
    looks: tuple[float, ...] = ()
    spending: Spending = "obrien_fleming"


def mean_plan(pilot: Interval, threshold: float, difference: float = 0.0) -> Plan:
    """The plan of a mean, a mean difference or a corpus metric, with the spread that a pilot showed.

    Args:
        pilot: the interval of the pilot's cases; with clusters its sd and their mean size carry over.
        threshold: -margin or +by, in the interval's unit.
        difference: what is assumed of the truth, in the same unit.
    """
    per_cluster = 1.0 if pilot.n_clusters is None else pilot.n / pilot.n_clusters
    return Plan(threshold, pilot.sd, difference, pilot.level, per_cluster=per_cluster)


def binary_plan(gain: float, loss: float, threshold: float, level: float = 0.95) -> Plan:
    """The plan of a difference of paired proportions, as a share; the true difference is gain - loss.

    Args:
        gain: share of cases that only the candidate solves.
        loss: share of cases that only the baseline solves.
        threshold: -margin or +by, as a share.
        level: confidence of the bound.

    >>> n_for_power(binary_plan(0.1, 0.1, threshold=-0.05), power=0.8)
    530
    """
    null_sd = _null_sd(gain, loss, threshold)
    return Plan(threshold, binary_sd(gain, loss), gain - loss, level, null_sd=null_sd, step=1.0)


def vote_plan(ties: float, threshold: float, win_rate: float = 0.5, level: float = 0.95) -> Plan:
    """The plan of a win rate; units are those of a win rate from 0 to 1, counted from even.

    Args:
        ties: share of votes that are ties.
        threshold: -margin or +by from 0.5: -0.05 lets the candidate win 45 %.
        win_rate: what is assumed of the truth, ties counting half.
        level: confidence of the bound.

    >>> n_for_power(vote_plan(ties=0.3, threshold=-0.05), power=0.8)
    443
    """
    gain = win_rate - ties / 2
    plan = binary_plan(gain, 1 - ties - gain, 2 * threshold, level)
    null_sd = None if plan.null_sd is None else plan.null_sd / 2
    return Plan(threshold, plan.sd / 2, win_rate - 0.5, level, null_sd=null_sd, step=0.5)


def binary_sd(gain: float, loss: float) -> float:
    """Standard deviation of one case's change, +1, -1 or 0.

    >>> round(binary_sd(0.1, 0.1), 4)
    0.4472
    """
    if min(gain, loss) < 0 or gain + loss > 1:
        raise BadRequest(f"plan: shares {gain} gained and {loss} lost are not two shares of one whole")
    return math.sqrt(gain + loss - (gain - loss) ** 2)


def power_at(plan: Plan, n: int) -> float:
    """Probability that the lower bound clears the threshold, at one look or another, with n cases in all.

    >>> round(power_at(Plan(threshold=-0.1, sd=0.7 ** 0.5), n=433), 2)
    0.8
    """
    _check(plan)
    looks = plan.looks or (1.0,)
    quantiles = (
        boundaries(looks, 1 - plan.level, plan.spending) if plan.looks else (special.ndtri(plan.level),)
    )
    null_sd = plan.sd if plan.null_sd is None else plan.null_sd
    drift = (plan.difference - plan.threshold) * math.sqrt(n) / plan.sd
    limits = []
    for fraction, z in zip(looks, quantiles, strict=True):
        at = fraction * n
        df = at / plan.per_cluster - 1
        if df < 1:
            limits.append(40.0)
            continue
        t = float(special.stdtrit(df, special.ndtr(z)))
        # Half a step, and where the estimate is in steps its error under the null, which is what the test divides by.
        limits.append((t * null_sd + plan.step * HALF_STEP / math.sqrt(at)) / plan.sd)
    return crossing(looks, limits, drift)


def n_for_power(plan: Plan, power: float) -> int | None:
    """The fewest cases in all with which a PASS has this probability; None where no number has.

    >>> n_for_power(Plan(threshold=-0.1, sd=0.7 ** 0.5), power=0.8)
    435
    """
    _check_power(power)
    _check(plan)
    if plan.difference <= plan.threshold:
        return None
    return _least(lambda n: power_at(plan, n) >= power)


def _least(holds: Callable[[int], bool]) -> int | None:
    """The smallest number from 2 on for which something holds that holds for all larger ones."""
    high = 4
    while not holds(high):
        if high > MAX_N:
            return None
        high *= 2
    low = high // 2 if high > 4 else 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _null_sd(gain: float, loss: float, threshold: float) -> float:
    """Tango's error of one change where the difference is the threshold: the limit of its restricted likelihood."""
    b = (2 - gain + loss) * threshold - gain - loss
    c = -loss * threshold * (1 - threshold)
    null_loss = (math.sqrt(max(b * b - 8 * c, 0.0)) - b) / 4
    return math.sqrt(max(2 * null_loss + threshold * (1 - threshold), 0.0))


def _check(plan: Plan) -> None:
    checked(plan.level)
    if not plan.sd > 0 or plan.per_cluster < 1:
        raise BadRequest(
            f"plan: sd {plan.sd}, {plan.per_cluster} cases a cluster; the first must be above 0, the other at least 1"
        )


def _check_power(power: float) -> None:
    if not 0 < power < 1:
        raise BadRequest(f"power: {power} is not a probability; use one in (0, 1), usually 0.8")


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
    _check_power(power)
    distance = (interval.estimate if assumed is None else assumed) - threshold
    if distance <= 0:
        return None
    z = float(special.ndtri(interval.level) + special.ndtri(power))
    n = math.ceil((z * interval.sd / distance) ** 2)
    inconclusive = assumed is None and decide_bound(interval, threshold) == "INCONCLUSIVE"
    return max(n, interval.n + 1 if inconclusive else 2)
