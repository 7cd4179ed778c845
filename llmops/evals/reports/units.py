"""Numbers as people read them: points with one decimal, everything else with its unit."""

from __future__ import annotations

import math

from llmops.evals.metrics.metric import POINTS
from llmops.records import Check, Decision
from llmops.stats import Interval

N_DIGITS = 3


def shown(value: float, unit: str = POINTS, *, named: bool = True) -> str:
    """A value on its metric's scale; `named` appends the unit where it is not points.

    >>> shown(27.04), shown(0.04217, "s"), shown(1234.5, "tokens"), shown(0.0, "nats")
    ('27.0', '0.0422 s', '1,234 tokens', '0 nats')
    """
    if unit == POINTS:
        return f"{value:.1f}"
    return _significant(value) + (f" {unit}" if named and unit else "")


def shown_difference(value: float, unit: str = POINTS, *, named: bool = True) -> str:
    """A difference with its sign.

    >>> shown_difference(-3.456), shown_difference(0.04217, "s"), shown_difference(0.0, "s")
    ('-3.46', '+0.0422 s', '0 s')
    """
    if unit == POINTS:
        return f"{value:+.2f}"
    sign = "+" if value > 0 else ""
    return sign + shown(value, unit, named=named)


def shown_interval(found: Interval | Check, unit: str = POINTS) -> str:
    """A difference with its bounds; the unit stands once.

    >>> shown_interval(Interval(0.5, 0.25, 0.75, 0.95, 9, 1.0, "t"), "s")
    '+0.500 s [+0.250, +0.750]'
    """
    low, high = (shown_difference(bound, unit, named=False) for bound in (found.low, found.high))
    estimate = found.estimate if isinstance(found, Interval) else found.difference
    return f"{shown_difference(estimate, unit)} [{low}, {high}]"


def check_name(check: Check) -> str:
    """What a gate's check is about: its part of the gate, suite, metric, slice, and kind."""
    words = (check.role, check.suite, check.metric, f"[{check.group}]" if check.group else "", check.kind)
    return " ".join(word for word in words if word)


def is_open(check: Check, decision: Decision) -> bool:
    """Whether a check waits for votes that are still being given, of which no number may be shown."""
    return check.metric == "win_rate" and decision.ratings is None


def must_be(check: Check) -> str:
    """On which side of its threshold a check's whole interval must lie."""
    return "<" if check.kind == "at_most" or check.better == "lower" else ">"


def _significant(value: float) -> str:
    """A number with three digits that say something, thousands separated, no exponent where a reader would stumble.

    >>> _significant(0.5), _significant(12.345), _significant(-98765.4), _significant(1.2e-9)
    ('0.500', '12.3', '-98,765', '1.2e-09')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = math.floor(math.log10(abs(value)))
    if size < -4:
        return f"{value:.{N_DIGITS}g}"
    if size >= N_DIGITS - 1:
        return f"{value:,.0f}"
    return f"{value:.{N_DIGITS - 1 - size}f}"
