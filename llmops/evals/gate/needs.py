"""What a plan of a gate says about one check, and what it takes for true."""

from __future__ import annotations

from dataclasses import dataclass

POWERS = (0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Needed:
    """What one check needs: units in all for each power, None where none is expected to suffice."""

    check: str
    kind: str
    limit: float
    assumed: float
    sd: float
    unit: str  # cases, pairs, rated items, votes or judged cases
    n_now: int | None
    needed: dict[str, int | None]
    basis: str


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes for true: `effect` of goals on the metric's scale (None: the pilot's), and people's votes.

    `correlation` is that of a judge's verdicts with people's; None takes what a calibration of it showed.
    """

    effect: float | None = None
    win_rate: float = 60.0
    ties_frac: float = 0.3
    correlation: float | None = None
