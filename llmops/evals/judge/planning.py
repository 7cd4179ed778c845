"""Votes and judged cases that a calibrated judge needs, before people are asked: the power of its one-sided bound.

What is assumed is the joint law of what people and the judge say of a case: people's from the question that is planned
for, the judge's given people's from a pilot that both judged. The expected width is that of `llmops.evals.judge.ppi`,
with all it pays for; what the estimate does is normal. Units: a win rate from 0 to 1, counted from even.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from llmops.errors import BadRequest
from llmops.stats import FloatArray
from llmops.stats.binary import HALF_STEP
from llmops.stats.planning import vote_plan

VALUES = np.array([0.0, 0.5, 1.0])
"""What the candidate gets of a case, in the order of the law's rows and columns."""
MORE = 2.0
"""One disagreement each way is counted beside those that are seen."""
MAX_CASES = 10_000_000
"""No plan asks for more."""


@dataclass(frozen=True, eq=False)
class JudgePlan:
    """A bound on a calibrated win rate that is still to be made.

    `law` [3, 3] is the probability of what people (rows) and the judge (columns) say: loss, tie, win of the candidate.
    `threshold` is -margin or +by from even.
    """

    law: FloatArray
    threshold: float
    level: float = 0.95

    @property
    def correlation(self) -> float:
        """Of people's and the judge's verdicts; 0 where either never varies."""
        y, f, both = _moments(self.law)
        return both / math.sqrt(y * f) if y * f > 0 else 0.0


def law_of(said: FloatArray, ties: float, win_rate: float) -> FloatArray:
    """A law with these shares of people's verdicts, and a judge as in a pilot.

    Args:
        said: [3, 3] items of the pilot by what people (rows) and the judge say: loss, tie, win.
        ties: share of people's verdicts that are ties.
        win_rate: what is assumed of the truth, ties counting half.

    Raises:
        BadRequest: no such shares.
    """
    people = _people(ties, win_rate)
    # Half an item of the pilot's judge in each row: what people never said there says nothing of the judge.
    given = said + 0.5 * (said.sum(axis=0) + 1) / (said.sum() + 3)
    law: FloatArray = people[:, None] * given / given.sum(axis=1, keepdims=True)
    return law


def law_with(correlation: float, ties: float, win_rate: float) -> FloatArray:
    """A law where the judge says what people say so often that this is the correlation, and else draws as they do.

    >>> round(JudgePlan(law_with(0.6, 0.3, 0.5), -0.1).correlation, 3)
    0.6
    """
    if not 0 <= correlation <= 1:
        raise BadRequest(f"plan: {correlation} is no correlation of judge and people; use one from 0 to 1")
    people = _people(ties, win_rate)
    law: FloatArray = correlation * np.diag(people) + (1 - correlation) * np.outer(people, people)
    return law


def judge_power(plan: JudgePlan, n_rated: int, n_cases: int) -> float:
    """Probability of a PASS with `n_rated` votes, one a case, on `n_cases` cases that are all judged."""
    n, n_free = n_rated, n_cases - n_rated
    y, f, both = _moments(plan.law)
    weight = both / f * n_free / n_cases if f > 0 and both > 0 else 0.0
    unexplained = y - 2 * weight * both + weight**2 * f
    of_others = weight**2 * f / n_free if n_free else 0.0
    alone = (n * y + MORE) / (n + MORE)
    noise = (n * unexplained + MORE) / (n + MORE) * (n - 1) / (n - 2)
    z = float(special.ndtri(plan.level))
    quantile = float(special.stdtrit(n - 2, plan.level)) / z
    rho = min((noise + n * of_others) / alone * quantile**2, 1.0)
    if rho == 1.0:
        weight, unexplained, of_others = 0.0, y, 0.0
    people = plan.law.sum(axis=1)
    test = vote_plan(float(people[1]), plan.threshold, float(people @ VALUES), plan.level)
    null_sd = test.sd if test.null_sd is None else test.null_sd
    worth = n / rho
    needed = z * null_sd / math.sqrt(worth) + test.step * HALF_STEP / worth
    error = math.sqrt(unexplained / n + of_others)
    return float(special.ndtr((test.difference - plan.threshold - needed) / error)) if error > 0 else 1.0


def votes_for(plan: JudgePlan, n_cases: int, power: float) -> int | None:
    """The fewest rated of `n_cases` judged cases with this power; None where rating all of them does not suffice."""
    return _least(lambda n: judge_power(plan, n, n_cases) >= power, 12, n_cases)


def cases_for(plan: JudgePlan, n_rated: int, power: float) -> int | None:
    """The fewest judged cases with which so many votes have this power; None where no number has."""
    return _least(lambda n: judge_power(plan, n_rated, n) >= power, n_rated, MAX_CASES)


def _least(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number in [low, high] for which something holds that holds for all larger ones."""
    if high < low or not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _people(ties: float, win_rate: float) -> FloatArray:
    """[3] shares of losses, ties and wins."""
    wins = win_rate - ties / 2
    shares = np.array([1 - ties - wins, ties, wins])
    if shares.min() < -1e-12:
        raise BadRequest(f"plan: a win rate of {win_rate:g} with {ties:g} ties leaves a share below 0")
    return shares.clip(0.0)


def _moments(law: FloatArray) -> tuple[float, float, float]:
    """Variance of people's verdict, of the judge's, and their covariance."""
    people, judge = law.sum(axis=1), law.sum(axis=0)
    y, f = float(people @ VALUES), float(judge @ VALUES)
    return (
        float(people @ (VALUES - y) ** 2),
        float(judge @ (VALUES - f) ** 2),
        float((VALUES - y) @ law @ (VALUES - f)),
    )
