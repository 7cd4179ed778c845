"""Means and mean differences: oracles of the clustered form, and what their bounds err by."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats as scipy_stats

from llmops.errors import InvalidEvidence
from llmops.stats import (
    FloatArray,
    Interval,
    decide_bound,
    mean_interval,
    paired_bounded,
    paired_t,
)
from llmops.stats.student import degrees_of_freedom
from tests.stats.calibration import Clusters, rouge_like_pair, tally

EQUAL = np.full(12, 8)
UNEQUAL = np.array([1, 2, 2, 3, 3, 4, 5, 6, 8, 9, 12, 15, 20, 24])
MANY = np.array([1] * 20 + [2] * 10 + [5] * 8 + [20] * 2)


def test_clustered_error_is_statsmodels_up_to_the_correction_for_size() -> None:
    """CR0 of statsmodels, each cluster's square divided by 1 - its share: CR2 of a mean in closed form."""
    found = Clusters(UNEQUAL, 0.3)
    x = found.draw(np.random.default_rng(1))
    fit = sm.OLS(x, np.ones(len(x))).fit(
        cov_type="cluster", cov_kwds={"groups": found.labels, "use_correction": False}
    )
    totals = np.bincount(found.labels, weights=x - x.mean())
    assert fit.bse[0] ** 2 == pytest.approx((totals**2).sum() / len(x) ** 2)
    cr2 = (totals**2 / (1 - UNEQUAL / len(x))).sum() / len(x) ** 2
    ours = mean_interval(x, 0.95, clusters=found.labels)
    assert ours.sd**2 / len(x) == pytest.approx(cr2)
    assert (ours.n, ours.n_clusters) == (len(x), len(UNEQUAL))


def test_degrees_of_freedom_are_those_of_bell_and_mccaffreys_matrix() -> None:
    """tr(M)^2 / tr(M^2) with M written out in full."""
    sizes = UNEQUAL.astype(float)
    shares = sizes / sizes.sum()
    scale = np.diag((1 - shares) ** -0.5)
    centred = np.eye(len(sizes)) - np.outer(shares, np.ones(len(sizes)))
    full = []
    for variances in (sizes, sizes**2):
        m = scale @ centred @ np.diag(variances) @ centred.T @ scale
        full.append(np.trace(m) ** 2 / np.trace(m @ m))
    assert degrees_of_freedom(sizes) == pytest.approx(min(full))
    assert degrees_of_freedom(np.full(9, 4.0)) == 8.0


def test_equal_clusters_of_like_cases_count_as_one_case_each() -> None:
    own = np.random.default_rng(2).normal(size=30)
    repeated = mean_interval(np.repeat(own, 5), 0.95, clusters=np.repeat(np.arange(30), 5))
    once = mean_interval(own, 0.95)
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))
    assert repeated.sd / math.sqrt(150) == pytest.approx(once.sd / math.sqrt(30))


def test_clusters_of_one_case_each_change_no_number() -> None:
    a, b = np.random.default_rng(3).normal(size=(2, 25))
    plain, clustered = paired_t(a, b, 0.95), paired_t(a, b, 0.95, clusters=[f"g{i}" for i in range(25)])
    assert (clustered.low, clustered.high, clustered.method) == (plain.low, plain.high, plain.method)
    assert (plain.n_clusters, clustered.n_clusters) == (None, 25)


def test_labels_that_are_not_one_a_case_are_refused() -> None:
    with pytest.raises(InvalidEvidence, match="give one a case"):
        mean_interval([1.0, 2.0, 3.0], 0.95, clusters=["a", "b"])


@pytest.mark.parametrize(
    ("values", "clusters", "reason"),
    [
        ([0.7] * 50, None, "equal"),
        ([*range(6)], None, "too few"),
        ([0.0] * 45 + [1.0, 2.0, -1.0, 3.0, -2.0], None, "5 of 50 values differ"),
        ([*np.linspace(0, 1, 59), 40.0], None, "a few values decide"),
        ([*range(40)], [i % 5 for i in range(40)], "5 independent units"),
        ([*range(40)], ["g"] * 40, "one cluster"),
    ],
)
def test_doubtful_evidence_decides_nothing_and_says_why(
    values: list[float], clusters: list[object] | None, reason: str
) -> None:
    found = mean_interval(values, 0.95, clusters)  # type: ignore[arg-type]
    assert reason in (found.doubt or "")
    assert decide_bound(found, -1e6) == decide_bound(found, 1e6) == "INCONCLUSIVE"


def test_plain_evidence_is_not_in_doubt() -> None:
    assert mean_interval(np.random.default_rng(4).normal(size=40), 0.95).doubt is None


def ties(rng: np.random.Generator, n: int, share: float) -> FloatArray:
    """Differences in whole points, most of them 0."""
    return (rng.random(n) < share) * rng.integers(-3, 4, n).astype(float)


DRAWS: dict[str, tuple[Callable[[np.random.Generator], FloatArray], float, float]] = {
    "normal, 10": (lambda rng: rng.normal(size=10), 0.0, 0.3),
    "normal, 30": (lambda rng: rng.normal(size=30), 0.0, 0.95),
    "rouge, 32": (lambda rng: np.subtract(*rouge_like_pair(rng, 32)), 0.0, 0.95),
    "rouge, 128": (lambda rng: np.subtract(*rouge_like_pair(rng, 128)), 0.0, 0.95),
    "gains, 128": (lambda rng: np.subtract(*rouge_like_pair(rng, 128, gain=10.0)[::-1]), 10.0, 0.95),
    "exponential, 20": (lambda rng: rng.exponential(1.0, 20), 1.0, 0.1),
    "exponential, 50": (lambda rng: rng.exponential(1.0, 50), 1.0, 0.3),
    "exponential, 200": (lambda rng: rng.exponential(1.0, 200), 1.0, 0.9),
    "lognormal, 60": (lambda rng: rng.lognormal(0.0, 0.6, 60), math.exp(0.18), 0.4),
    "lognormal 1, 300": (lambda rng: rng.lognormal(0.0, 1.0, 300), math.exp(0.5), 0.4),
    "heavy tails, 20": (lambda rng: rng.standard_t(3, 20), 0.0, 0.6),
    "ties, 40": (lambda rng: ties(rng, 40, 0.3), 0.0, 0.5),
    "ties, 100": (lambda rng: ties(rng, 100, 0.1), 0.0, 0.3),
    "one step, 60": (lambda rng: ties(rng, 60, 0.25) / 3 // 1, -0.5 / 7, 0.3),
    "beta, 40": (lambda rng: rng.beta(0.5, 2.0, 40), 0.2, 0.6),
}


@pytest.mark.stats
@pytest.mark.parametrize("data", DRAWS)
def test_mean_keeps_its_level_on_both_sides(rng: np.random.Generator, data: str) -> None:
    draw, truth, decided = DRAWS[data]
    tally(lambda: mean_interval(draw(rng), 0.95), truth).assert_holds(decided=decided)


@pytest.mark.stats
@pytest.mark.parametrize("icc", [0.05, 0.5])
@pytest.mark.parametrize(
    ("sizes", "skewed", "decided"),
    [
        (EQUAL[:8], False, 0.2),
        (EQUAL, False, 0.4),
        (EQUAL, True, 0.1),
        (UNEQUAL, False, 0.2),
        (MANY, True, 0.25),
    ],
    ids=["8 equal", "12 equal", "12 skewed", "14 unequal", "40 unequal, skewed"],
)
def test_clustered_mean_keeps_its_level(
    rng: np.random.Generator, sizes: FloatArray, skewed: bool, decided: float, icc: float
) -> None:
    found = Clusters(sizes, icc, skewed)  # type: ignore[arg-type]
    labels = found.labels
    tally(lambda: mean_interval(found.draw(rng), 0.95, labels), 0.0).assert_holds(decided=decided)


@pytest.mark.stats
def test_without_clusters_the_same_data_errs_four_times_as_often(rng: np.random.Generator) -> None:
    found = Clusters(EQUAL, 0.5)
    blind = tally(lambda: mean_interval(found.draw(rng), 0.95), 0.0)
    assert blind.n_low_wrong > 0.2 * blind.n


@pytest.mark.stats
@pytest.mark.parametrize("data", ["rouge, 128", "gains, 128", "exponential, 200", "normal, 30", "beta, 40"])
def test_two_sided_95_percent_interval_covers_94_to_97_percent(rng: np.random.Generator, data: str) -> None:
    draw, truth, _ = DRAWS[data]
    found = tally(lambda: mean_interval(draw(rng), 0.975), truth)
    assert found.coverage >= 0.94
    if int(data.split()[-1]) >= 100:
        assert found.coverage <= 0.97


@pytest.mark.stats
def test_plain_student_fails_the_rule_on_skewed_data(rng: np.random.Generator) -> None:
    x = rng.exponential(1.0, (10_000, 50))
    high = x.mean(axis=1) + scipy_stats.t.ppf(0.95, 49) * scipy_stats.sem(x, axis=1)
    assert np.mean(high < 1.0) > 0.08


@pytest.mark.stats
@pytest.mark.parametrize("n", [12, 50, 200])
@pytest.mark.parametrize("share", [0.01, 0.03, 0.1, 0.3, 0.5])
def test_bounded_difference_sees_the_catastrophe_that_no_case_showed(
    n: int, share: float, rng: np.random.Generator
) -> None:
    """Most answers stay as good, a few fall from 100 to 0: where an approximation errs up to one time in four."""
    level = np.full(n, 100.0)

    def replicate() -> Interval:
        return paired_bounded(level, np.where(rng.random(n) < share, 0.0, 100.0), 0.95, 100.0)

    tally(replicate, -100 * share).assert_holds()


@pytest.mark.stats
@pytest.mark.parametrize("spread", [0.0, 5.0, 60.0])
def test_bounded_difference_holds_where_the_common_amount_is_found_in_the_data(
    spread: float, rng: np.random.Generator
) -> None:
    """Two amounts nearly as common as each other: whichever is more common in a sample is where the bounds start."""

    def replicate() -> Interval:
        gain = np.where(rng.random(16) < 0.8, 10.0, 10.0 + spread)
        return paired_bounded(np.zeros(16), gain, 0.95, 100.0)

    tally(replicate, 10.0 + 0.2 * spread).assert_holds()
