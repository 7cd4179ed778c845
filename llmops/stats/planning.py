"""How many cases or votes a gate needs, before they are made and after they were too few."""

from __future__ import annotations

import math

from scipy import special

from llmops.errors import BadRequest
from llmops.stats.interval import Interval, decide_bound


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
