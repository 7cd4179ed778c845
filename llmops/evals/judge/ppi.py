"""A win rate from people's votes on some cases and a judge's verdicts on all: prediction-powered inference.

The estimate is people's mean, moved by what the judge says of the other cases: mean(y) + weight * (mean(f over the
others) - mean(f over the rated)). Whatever the judge's bias, it cancels: a judge decides only how much narrower the
interval gets. Its weight is chosen for the smallest variance (PPI++), for each case without the labels of that case and
of those alike, so that few labels do not flatter it.

The interval is Tango's, as for people alone, at the number of votes that would be as precise: n / rho, where rho is the
variance relative to independent votes alone. rho counts one more disagreement of people and judge each way (none seen
among few is not none), and pays for the weight and the estimated variance with a t quantile. Where people alone are
worth more the judge's weight is 0: a useless judge leaves their interval as it is.

Clusters and raters multiply rho by a design effect (`llmops.evals.judge.alike`).

Source: Angelopoulos et al., Prediction-powered inference, Science 382 (2023) 669-674; Angelopoulos, Duchi and Zrnic,
PPI++: Efficient prediction-powered inference (2023). The effective sample size for the score interval is ours; its
level is measured by `make test-stats`.

Shapes: V votes, n rated cases, N other cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from llmops.errors import InvalidEvidence
from llmops.evals.judge.alike import Influence, alike
from llmops.stats import FloatArray, Interval, Labels
from llmops.stats.binary import Changes, changes_interval
from llmops.stats.interval import IntArray
from llmops.stats.wins import worth

SCORE = {"first": 1.0, "second": 0.0}
"""An outcome as a share of a win for the candidate; all else counts half."""
_MORE = 2.0  # pseudo-observations: one disagreement each way


@dataclass(frozen=True)
class Calibrated:
    """A win rate less 50, in points, and the judge's weight in it; it is worth `n_worth` votes of people alone."""

    interval: Interval
    weight: float
    n_worth: float


@dataclass(frozen=True, eq=False)
class Rated:
    """Votes [V] on n rated cases, and what the judge says of these [n]: 0, 0.5 or 1 win of the candidate each.

    `case` [V] is the case (0 .. n - 1) that a vote is about, None for one vote a case in their order. `raters` [V] is
    who voted, None where that is no part of the question. `clusters` [n] is each case's, None for independent cases.
    """

    votes: npt.ArrayLike
    judge: npt.ArrayLike
    case: Sequence[int] | IntArray | None = None
    raters: Labels | None = None
    clusters: Labels | None = None


@dataclass(frozen=True, eq=False)
class Others:
    """What the judge says of the N cases that nobody rated, and their clusters: the rated are a random part of all."""

    judge: npt.ArrayLike
    clusters: Labels | None = None


def calibrated_win_rate(rated: Rated, others: Others, level: float) -> Calibrated:
    """The win rate over all cases that could have been rated; `level`, in (0.5, 1), is that of each bound.

    Raises:
        InvalidEvidence: fewer than 3 cases were rated.

    >>> rated = Rated([1] * 45 + [0] * 35 + [0.5] * 20, [1] * 45 + [0] * 35 + [0.5] * 20)
    >>> found = calibrated_win_rate(rated, Others([1] * 450 + [0] * 350 + [0.5] * 200), level=0.95)
    >>> round(found.interval.estimate, 1), found.n_worth > 300
    (5.0, True)
    """
    known = _Known.of(rated, others)
    n, n_free = len(known.judge), len(known.free)
    if n < 3:
        raise InvalidEvidence(f"calibration: {n} rated cases; no variance can be estimated from fewer than 3")
    alone = worth(known.votes, level, known.units, rated.raters)
    found = _powered(known, level) if n_free else _Powered(0.0, 0.0, 0.0)
    if found.n_worth <= alone.n:
        found = _Powered(0.0, alone.n, float(known.votes.mean()) - 0.5)
    cases = f"{n} rated and {n_free} judged cases, worth {found.n_worth:.0f} votes"
    method = f"ppi++, tango; judge's weight {found.weight:.2f}, {cases}"
    decided = known.mean(np.asarray(known.votes != 0.5, dtype=float))
    bounds = changes_interval(_changes(2 * found.estimate, decided, found.n_worth), level).scaled(0.5)
    # One rated case's sd, so that sample sizes are foreseen in rated cases; a doubt about people's votes stays.
    sd = bounds.sd * math.sqrt(n / found.n_worth)
    interval = replace(bounds, n=n, sd=sd, method=method, n_clusters=alone.n_items, doubt=alone.doubt)
    return Calibrated(interval.scaled(100), found.weight, found.n_worth)


def _changes(difference: float, decided: float, n: float) -> Changes:
    """Wins and losses among n cases with that difference of shares, and that share of either."""
    difference = min(max(difference, -1.0), 1.0)
    decided = max(decided, abs(difference))
    return Changes((decided + difference) / 2 * n, (decided - difference) / 2 * n, n)


@dataclass(frozen=True, eq=False)
class _Known:
    """Votes [V] and their cases [V], the judge on the rated [n] and other cases [N], and who is alike."""

    votes: FloatArray
    case: IntArray
    judge: FloatArray
    free: FloatArray
    clusters: tuple[IntArray, IntArray] | None
    raters: IntArray | None

    @classmethod
    def of(cls, rated: Rated, others: Others) -> _Known:
        """As arrays, with clusters and raters numbered from 0."""
        votes, judge = np.asarray(rated.votes, dtype=float), np.asarray(rated.judge, dtype=float)
        free = np.asarray(others.judge, dtype=float)
        case = np.arange(len(votes)) if rated.case is None else np.asarray(rated.case)
        raters = None if rated.raters is None else np.unique(rated.raters, return_inverse=True)[1]
        clusters = None
        if rated.clusters is not None:
            labels = [np.asarray(rated.clusters)]
            labels += [np.asarray(others.clusters)] if others.clusters is not None and len(free) else []
            codes = np.unique(np.concatenate(labels), return_inverse=True)[1]
            clusters = codes[: len(judge)], codes[len(judge) :]
        return cls(votes, case, judge, free, clusters, raters)

    @property
    def units(self) -> IntArray:
        """[V] what is independent of one another: each vote's cluster, or its case."""
        return self.case if self.clusters is None else self.clusters[0][self.case]

    @property
    def people(self) -> FloatArray:
        """[n] the mean vote on each rated case."""
        return self.by_case(self.votes)

    def by_case(self, of_votes: FloatArray) -> FloatArray:
        """[n] the mean over each case's votes."""
        found: FloatArray = np.bincount(self.case, weights=of_votes) / np.bincount(self.case)
        return found

    def mean(self, of_votes: FloatArray) -> float:
        """The mean over rated cases of the mean over their votes."""
        return float(self.by_case(of_votes).mean())


@dataclass(frozen=True)
class _Powered:
    """A judge's weight, how many independent votes the estimate is worth, and the win rate less 0.5."""

    weight: float
    n_worth: float
    estimate: float


def _powered(known: _Known, level: float) -> _Powered:
    """People's mean moved by the judge; each case's weight is that of the cases that are not like it."""
    y, f, n, n_free = known.people, known.judge, len(known.judge), len(known.free)
    total, own = _sums(known)
    weight = float(_weight(total))
    if not weight:
        return _Powered(0.0, 0.0, 0.0)
    pull = _weight(total[:, None] - own) * (f - known.free.mean())
    moved = y - pull
    estimate = float(moved.mean())
    votes = (known.votes - pull[known.case] - estimate) / (n * np.bincount(known.case)[known.case])
    others = weight * (known.free - known.free.mean()) / n_free
    cost = alike(Influence(votes, others, moved, known.case, known.clusters, known.raters), level)
    n_units = n if known.clusters is None else len(np.unique(known.clusters[0]))
    unexplained = (
        (float(np.sum((moved - estimate) ** 2)) + _MORE) / (n + _MORE) * (n_units - 1) / max(n_units - 2, 1)
    )
    of_others = weight**2 * float(np.concatenate([f, known.free]).var()) * n / n_free
    spread = known.mean((known.votes - y.mean()) ** 2)
    single = (n * spread + _MORE) / (n + _MORE)
    rho = (unexplained + of_others) / single * cost.effect * cost.quantile
    return _Powered(weight, n / rho, estimate - 0.5)


def _sums(known: _Known) -> tuple[FloatArray, FloatArray]:
    """Sums [7] from which a weight follows, and the share [7, n] of all that is like each rated case.

    Of the rated cases n, y, f, y f (y people, f judge), and of all cases n, f, f^2.
    """
    y, f, free = known.people, known.judge, known.free
    rated = np.stack([np.ones_like(f), y, f, y * f, np.ones_like(f), f, f * f])
    zero = np.zeros_like(free)
    others = np.stack([zero, zero, zero, zero, np.ones_like(free), free, free * free])
    total = rated.sum(axis=1) + others.sum(axis=1)
    if known.clusters is None:
        return total, rated
    mine, theirs = known.clusters
    n = int(max(mine.max(), theirs.max(initial=0))) + 1
    both = np.concatenate([mine, theirs])
    own: FloatArray = np.stack(
        [np.bincount(both, weights=row, minlength=n).astype(np.float64) for row in np.hstack([rated, others])]
    )
    return total, own[:, mine]


def _weight(sums: FloatArray) -> FloatArray:
    """The judge's weight of the smallest variance, between 0 and 1, from sums [7, ...]."""
    n, y, f, yf, all_n, all_f, all_ff = sums
    few, many = np.maximum(n, 1), np.maximum(all_n, 1)
    covariance = yf / few - y * f / few**2
    variance = all_ff / many - (all_f / many) ** 2
    slope = np.where(variance > 1e-12, covariance / np.maximum(variance, 1e-12), 0.0)
    found: FloatArray = np.clip(slope * (all_n - n) / many, 0.0, 1.0)
    return found
