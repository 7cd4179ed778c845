"""A win rate from people's votes on some cases and a judge's verdicts on all: prediction-powered inference.

The estimate is people's mean, moved by what the judge says of the other cases: mean(y) + weight * (mean(f over the
others) - mean(f over the rated)). Whatever the judge's bias, it cancels: a judge decides only how much narrower the
interval gets. Its weight is chosen for the smallest variance (PPI++), for each case without that case's own label, so
that few labels do not flatter it.

The interval is Tango's, as for people alone, at the number of votes that would be as precise: n / rho, where rho is the
variance relative to people's alone. rho counts one more disagreement of people and judge each way (none seen among few
is not none), pays for the weight and the estimated variance with a t quantile, and is never above 1: a useless judge
leaves people's interval as it is.

Source: Angelopoulos et al., Prediction-powered inference, Science 382 (2023) 669-674; Angelopoulos, Duchi and Zrnic,
PPI++: Efficient prediction-powered inference (2023). The effective sample size for the score interval is ours; its
level is measured by `make test-stats`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from llmops.errors import InvalidEvidence
from llmops.stats import FloatArray, Interval
from llmops.stats.binary import Changes, changes_interval

SCORE = {"first": 1.0, "second": 0.0}
"""An outcome as a share of a win for the candidate; all else counts half."""
_VALUES = np.array([0.0, 0.5, 1.0])
_MORE = 2.0  # pseudo-observations: one disagreement each way


@dataclass(frozen=True)
class Calibrated:
    """A win rate less 50, in points, and the judge's weight in it; it is worth `n_worth` votes of people alone."""

    interval: Interval
    weight: float
    n_worth: float


def calibrated_win_rate(
    rated: Sequence[tuple[float, float]], others: Sequence[float], level: float
) -> Calibrated:
    """The win rate over all cases that could have been rated.

    Args:
        rated: [n] what people and what the judge say of each rated case: 0, 0.5 or 1 win of the candidate each.
        others: [N] what the judge says of the cases nobody rated; the rated ones are a random part of all.
        level: confidence of each bound, in (0.5, 1).

    Raises:
        InvalidEvidence: fewer than 3 cases were rated.
    """
    return from_counts(_table(rated), _counts(others), level)


def from_counts(table: FloatArray, free: FloatArray, level: float) -> Calibrated:
    """The same from counts of cases.

    Args:
        table: [3, 3] rated cases by what people (rows) and the judge (columns) say: 0, 0.5, 1 win of the candidate.
        free: [3] other cases by what the judge says.
        level: confidence of each bound, in (0.5, 1).

    Raises:
        InvalidEvidence: fewer than 3 cases were rated.
    """
    n, n_free = float(table.sum()), float(free.sum())
    if n < 3:
        raise InvalidEvidence(
            f"calibration: {n:.0f} rated cases; no variance can be estimated from fewer than 3"
        )
    people = table.sum(axis=1)
    estimate = float(people @ _VALUES) / n
    alone = (_spread(people, estimate) + _MORE) / (n + _MORE)
    sums = _Sums.of(table, free)
    weight, rho = sums.weight, 1.0
    if weight:
        moved, unexplained = _estimated(sums, table, free)
        of_others = weight**2 * _variance(table.sum(axis=0) + free) * n / n_free
        quantile = float(special.stdtrit(n - 2, level) / special.ndtri(level))
        noise = (unexplained + _MORE) / (n + _MORE) * (n - 1) / (n - 2)
        rho = (noise + of_others) / alone * quantile**2
        weight, estimate, rho = (weight, moved, rho) if rho < 1 else (0.0, estimate, 1.0)
    decided = float(people[0] + people[2]) / n
    cases = f"{n:.0f} rated and {n_free:.0f} judged cases, worth {n / rho:.0f} votes"
    method = f"ppi++, tango; judge's weight {weight:.2f}, {cases}"
    found = changes_interval(_changes(2 * estimate - 1, decided, n / rho), level)
    # One rated case's sd, so that sample sizes are foreseen in rated cases.
    rated_alone = replace(found, n=round(n), sd=found.sd * math.sqrt(rho), method=method)
    return Calibrated(rated_alone.scaled(50), weight, n / rho)


def _changes(difference: float, decided: float, n: float) -> Changes:
    """Wins and losses among n cases with that difference of shares, and that share of either."""
    difference = min(max(difference, -1.0), 1.0)
    decided = max(decided, abs(difference))
    return Changes((decided + difference) / 2 * n, (decided - difference) / 2 * n, n)


def _table(rated: Sequence[tuple[float, float]]) -> FloatArray:
    """[3, 3] counts of cases by what people (rows) and the judge (columns) say."""
    table = np.zeros((3, 3))
    for people, judge in rated:
        table[round(2 * people), round(2 * judge)] += 1
    return table


def _counts(values: Sequence[float]) -> FloatArray:
    return np.bincount([round(2 * value) for value in values], minlength=3).astype(float)


@dataclass(frozen=True)
class _Sums:
    """Sums over the rated cases (y people, f judge) and over all cases (`all_`), from which a weight follows."""

    n: float
    y: float
    f: float
    yf: float
    all_n: float
    all_f: float
    all_ff: float

    @classmethod
    def of(cls, table: FloatArray, free: FloatArray) -> _Sums:
        """The sums of a table and of the other cases' counts."""
        judged, people = table.sum(axis=0), table.sum(axis=1)
        both, values = judged + free, _VALUES
        return cls(
            float(table.sum()),
            float(people @ values),
            float(judged @ values),
            float(values @ table @ values),
            float(both.sum()),
            float(both @ values),
            float(both @ values**2),
        )

    def without(self, y: float, f: float) -> _Sums:
        """The sums without one rated case."""
        return _Sums(
            self.n - 1, self.y - y, self.f - f, self.yf - y * f, self.all_n - 1, self.all_f - f, self.all_ff - f * f
        )  # fmt: skip

    @property
    def weight(self) -> float:
        """The judge's weight of the smallest variance, between 0 and 1."""
        covariance = self.yf / self.n - self.y * self.f / self.n**2
        variance = self.all_ff / self.all_n - (self.all_f / self.all_n) ** 2
        n_free = self.all_n - self.n
        if variance <= 1e-12:
            return 0.0
        return min(max(covariance / variance * n_free / (n_free + self.n), 0.0), 1.0)


def _estimated(sums: _Sums, table: FloatArray, free: FloatArray) -> tuple[float, float]:
    """The estimate, and the sum of squares of what the judge leaves unexplained; each case's weight is the others'."""
    others_mean = float(free @ _VALUES) / float(free.sum())
    cells = [(float(table[i, j]), i / 2, j / 2) for i, j in np.argwhere(table > 0)]
    moved = [(k, y - sums.without(y, f).weight * (f - others_mean)) for k, y, f in cells]
    estimate = sum(k * value for k, value in moved) / sums.n
    return estimate, sum(k * (value - estimate) ** 2 for k, value in moved)


def _variance(counts: FloatArray) -> float:
    mean = float(counts @ _VALUES) / float(counts.sum())
    return _spread(counts, mean) / float(counts.sum())


def _spread(counts: FloatArray, mean: float) -> float:
    return float(counts @ (_VALUES - mean) ** 2)
