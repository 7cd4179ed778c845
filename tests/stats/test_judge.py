"""A judge beside people: the calibrated rate, kappa and the correlation with length keep their level."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.inter_rater import cohens_kappa as reference_kappa

from llmops.evals.judge.agreement import cohens_kappa
from llmops.evals.judge.pairwise import length_correlation
from llmops.evals.judge.planning import JudgePlan, law_with, votes_for
from llmops.evals.judge.ppi import Others, Rated, calibrated_win_rate
from llmops.stats import FloatArray, Interval
from llmops.stats.binary import Changes, changes_interval
from tests.evals.judge.test_calibrate import said
from tests.evals.judge.test_ppi import from_counts, joint
from tests.stats.calibration import REPLICATIONS, tally

pytestmark = pytest.mark.stats


@pytest.mark.parametrize(
    ("people", "right", "favours", "n", "n_free"),
    [
        pytest.param((0.5, 0.0, 0.5), 0.5, 0.9, 40, 1000, id="no-ties-a-biased-judge-few-votes"),
        pytest.param((0.35, 0.3, 0.35), 0.8, 0.9, 40, 60, id="ties-few-votes-few-cases"),
        pytest.param((0.35, 0.3, 0.35), 0.5, -0.9, 100, 400, id="ties-a-judge-that-dislikes-the-candidate"),
        pytest.param((0.2, 0.6, 0.2), 0.2, 0.9, 40, 1000, id="mostly-ties-a-poor-judge"),
        pytest.param((0.35, 0.3, 0.35), 0.97, 1.0, 100, 1000, id="a-judge-that-errs-rarely-and-one-way"),
        pytest.param((0.1, 0.2, 0.7), 0.5, -0.9, 64, 300, id="skew-far-from-even"),
        pytest.param((0.35, 0.3, 0.35), 0.0, 0.0, 40, 200, id="a-judge-that-guesses"),
    ],
)
def test_each_bound_of_the_calibrated_rate_is_wrong_at_most_5_percent_of_the_time(
    people: tuple[float, float, float], right: float, favours: float, n: int, n_free: int,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    law = joint(people, right, favours)

    def one() -> Interval:
        table = rng.multinomial(n, law.ravel()).reshape(3, 3).astype(float)
        free = rng.multinomial(n_free, law.sum(axis=0)).astype(float)
        return from_counts(table, free).interval

    tally(one, 50 * (people[2] - people[0])).assert_holds(decided=0.99)


@pytest.mark.parametrize(
    ("n_clusters", "size", "per_case", "n_raters", "right"),
    [
        pytest.param(12, 10, 1, 1, 0.9, id="12-clusters-a-good-judge"),
        pytest.param(90, 1, 1, 6, 0.7, id="6-raters"),
        pytest.param(40, 3, 2, 4, 0.8, id="4-raters-two-votes-a-case-in-clusters"),
    ],
)
def test_calibrated_rate_keeps_its_level_where_cases_and_raters_lean(
    n_clusters: int, size: int, per_case: int, n_raters: int, right: float, rng: np.random.Generator
) -> None:
    """A third of the cases is rated. Clusters and raters lean by their own; nobody is liked better in the mean.

    The judge hears what makes a cluster lean, is right so often about a case, and leans to the candidate else.
    """
    clusters = np.repeat(np.arange(n_clusters), size)
    n = len(clusters)

    def one() -> Interval:
        liking = rng.normal(size=n_clusters)[clusters] + rng.normal(size=n)
        judged = np.where(rng.random(n) < right, liking, rng.normal(size=n) + 0.7)
        order = rng.permutation(n)
        rated, free = order[: n // 3], order[n // 3 :]
        case = np.repeat(np.arange(len(rated)), per_case)
        raters = rng.random((len(rated), n_raters)).argsort(axis=1)[:, :per_case].ravel()
        taste = 0.7 * rng.normal(size=n_raters)[raters] if n_raters > 1 else 0.0
        said = liking[rated][case] + taste + rng.normal(size=len(case))
        of = Rated(
            votes_of(said), votes_of(judged[rated]), case, raters if n_raters > 1 else None,
            clusters[rated] if size > 1 else None,
        )  # fmt: skip
        others = Others(votes_of(judged[free]), clusters[free] if size > 1 else None)
        return calibrated_win_rate(of, others, 0.95).interval

    tally(one, 0.0).assert_holds(decided=0.99)


def votes_of(liking: FloatArray) -> FloatArray:
    """Wins, ties and losses, a quarter of them or so ties."""
    return np.where(liking > 0.4, 1.0, np.where(liking < -0.4, 0.0, 0.5))


def test_the_yardstick_condemns_a_judge_that_is_believed_without_people(rng: np.random.Generator) -> None:
    """Why an uncalibrated judge blocks nothing: one that leans a little to the candidate passes it most of the time."""
    law = joint((0.35, 0.3, 0.35), 0.8, 0.6).sum(axis=0)
    draws = rng.multinomial(1000, law, size=REPLICATIONS)
    passed = sum(
        changes_interval(Changes(wins, losses, 1000), 0.95).low > 0 for losses, _, wins in draws.tolist()
    )
    assert scipy_stats.binomtest(passed, REPLICATIONS).proportion_ci(0.98, method="exact").low > 0.3


@pytest.mark.parametrize(
    ("people", "right", "favours", "n"),
    [
        pytest.param((0.35, 0.3, 0.35), 0.8, 0.0, 40, id="a-good-judge"),
        pytest.param((0.35, 0.3, 0.35), 0.97, 0.0, 40, id="hardly-a-disagreement"),
        pytest.param((0.35, 0.3, 0.35), 0.0, 0.0, 100, id="a-judge-that-guesses"),
        pytest.param((0.1, 0.2, 0.7), 0.5, -0.9, 40, id="skew"),
        pytest.param((0.05, 0.05, 0.9), 0.9, 0.0, 100, id="mostly-one-answer"),
    ],
)
def test_kappa_keeps_its_level(
    rng: np.random.Generator, people: tuple[float, float, float], right: float, favours: float, n: int
) -> None:
    law = joint(people, right, favours)
    truth = reference_kappa(law, return_results=False)

    def one() -> Interval:
        found = cohens_kappa(*said(rng.multinomial(n, law.ravel()).reshape(3, 3)), 0.95)
        return found or Interval(1.0, -1.0, 1.0, 0.95, n, 0.0, "none")

    tally(one, float(truth)).assert_holds(decided=0.99)


@pytest.mark.parametrize(
    ("rho", "clustered"), [(0.0, False), (0.6, False), (0.6, True)], ids=["none", "some", "some, in threes"]
)
def test_correlation_with_length_keeps_its_level(
    rng: np.random.Generator, rho: float, clustered: bool
) -> None:
    """60 cases; length is skewed, who wins has ties, and both lean by cluster where there are clusters.

    The truth is that of 300,000 cases; its own error is a thirtieth of an interval's width.
    """
    clusters = np.repeat(np.arange(20), 3) if clustered else None

    def draw(n: int, of: Any) -> tuple[list[str], list[int]]:
        z, e = (_leaning(rng, n, of) for _ in range(2))
        y = rho * z + math.sqrt(1 - rho**2) * e
        won = np.where(y > 0.4, "first", np.where(y < -0.4, "second", "tie"))
        return won.tolist(), np.round(50 * np.exp(z)).astype(int).tolist()

    large = length_correlation(*draw(300_000, None), 0.95)
    assert large is not None

    def one() -> Interval:
        found = length_correlation(*draw(60, clusters), 0.95, clusters)
        assert found is not None
        return found

    tally(one, large.estimate).assert_holds(decided=0.99)


def _leaning(rng: np.random.Generator, n: int, clusters: Any) -> FloatArray:
    own: FloatArray = rng.normal(size=n)
    if clusters is None:
        return own
    return np.sqrt(0.5) * own + np.sqrt(0.5) * rng.normal(size=clusters.max() + 1)[clusters]


@pytest.mark.parametrize(
    ("correlation", "win_rate", "threshold", "n_cases", "power"),
    [
        (0.7, 0.5, -0.1, 1000, 0.8),
        (0.7, 0.5, -0.1, 1000, 0.9),
        (0.7, 0.5, -0.1, 1000, 0.95),
        (0.4, 0.5, -0.1, 400, 0.8),
        (0.8, 0.6, 0.0, 600, 0.9),
    ],
    ids=["a good judge, 80", "a good judge, 90", "a good judge, 95", "a poor judge", "a goal"],
)
def test_calibrated_judge_passes_as_often_as_planned(
    rng: np.random.Generator, correlation: float, win_rate: float, threshold: float, n_cases: int, power: float
) -> None:  # fmt: skip
    planned = JudgePlan(law_with(correlation, 0.3, win_rate), threshold)
    n = votes_for(planned, n_cases, power)
    assert n is not None
    tables = rng.multinomial(n, planned.law.ravel(), size=REPLICATIONS).reshape(-1, 3, 3)
    others = rng.multinomial(n_cases - n, planned.law.sum(axis=0), size=REPLICATIONS)
    passed = sum(
        from_counts(table, free).interval.low > 100 * threshold
        for table, free in zip(tables, others, strict=True)
    )
    assert passed / REPLICATIONS == pytest.approx(power, abs=0.03)
