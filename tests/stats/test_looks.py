"""Declared looks: boundaries against published tables, and what stopping at the first PASS errs by."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import special
from scipy import stats as scipy_stats

from llmops.errors import BadRequest
from llmops.stats import decide_bound, look_level, mean_interval, paired_t
from llmops.stats.binary import Changes, changes_interval
from llmops.stats.looks import boundaries, crossing, spent
from tests.stats.calibration import REPLICATIONS, assert_holds, inflation, rouge_like_pair

FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
QUARTERS = (0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        ("obrien_fleming", (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ("pocock", (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
    ],
)
def test_boundaries_are_those_of_landem(spending: str, published: tuple[float, ...]) -> None:
    """Reboussin, DeMets, Kim and Lan, Controlled Clinical Trials 21 (2000) 190-207: five looks, 0.025 a side."""
    assert boundaries(FIFTHS, 0.025, spending) == pytest.approx(published, abs=6e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n_looks", "pocock", "obrien_fleming"), [(2, 2.178, 1.977), (5, 2.413, 2.040), (10, 2.555, 2.087)]
)
def test_crossing_gives_back_jennison_and_turnbulls_constants(
    n_looks: int, pocock: float, obrien_fleming: float
) -> None:
    """Tables 2.1 and 2.3 (2000): two-sided 5 %, of which the upper side is half."""
    fractions = np.arange(1, n_looks + 1) / n_looks
    assert crossing(fractions, [pocock] * n_looks) == pytest.approx(0.025, abs=1e-4)
    assert crossing(fractions, obrien_fleming / np.sqrt(fractions)) == pytest.approx(0.025, abs=1e-4)


def test_crossing_with_drift_gives_the_power_of_jennison_and_turnbulls_inflation_factors() -> None:
    """Table 2.4 (2000): O'Brien and Fleming's five looks need 1.028 times the fixed n at 80 % power."""
    fractions = np.arange(1, 6) / 5
    drift = math.sqrt(1.028) * (special.ndtri(0.975) + special.ndtri(0.8))
    assert crossing(fractions, 2.040 / np.sqrt(fractions), drift) == pytest.approx(0.8, abs=5e-4)


def test_two_looks_are_a_bivariate_normal_integral() -> None:
    """scipy's multivariate normal: correlation of the statistics is the root of the fraction."""
    first, second = boundaries((0.3, 1.0), 0.05)
    correlation = math.sqrt(0.3)
    both_below = scipy_stats.multivariate_normal(cov=[[1, correlation], [correlation, 1]]).cdf(
        [first, second]
    )
    assert 1 - both_below == pytest.approx(0.05, abs=1e-5)
    assert 1 - special.ndtr(first) == pytest.approx(spent(0.3, 0.05))


def test_one_look_is_no_sequential_test() -> None:
    assert look_level((1.0,), 1, alpha=0.05) == pytest.approx(0.95)
    assert inflation((1.0,), 0.05, 0.8) == pytest.approx(1.0, abs=1e-6)
    assert inflation((0.5, 1.0), 0.05, 0.8) == pytest.approx(1.008, abs=5e-4)


def test_levels_fall_from_look_to_look_and_the_last_asks_little_more_than_one_look() -> None:
    levels = [look_level(QUARTERS, k, 0.05) for k in (1, 2, 3, 4)]
    assert all(a > b for a, b in pairwise(levels))
    assert 0.95 < levels[-1] < 0.958


def test_very_early_look_has_a_level_that_quantiles_can_use() -> None:
    assert 0.9999999 < look_level((0.02, 1.0), 1) < 1
    assert math.isfinite(mean_interval(range(20), look_level((0.02, 1.0), 1)).low)


@pytest.mark.parametrize(
    ("fractions", "look", "alpha"),
    [
        ((), 1, 0.05),
        ((0.5, 0.5, 1.0), 1, 0.05),
        ((0.5, 0.9), 1, 0.05),
        ((0.5, 1.0), 3, 0.05),
        ((1.0,), 1, 0.7),
    ],
)
def test_looks_that_are_not_declared_right_are_refused(
    fractions: tuple[float, ...], look: int, alpha: float
) -> None:
    with pytest.raises(BadRequest):
        look_level(fractions, look, alpha)


def stopped(rng: np.random.Generator, spending: str | None) -> int:
    """How often equal systems PASS at one of four looks at 200 cases."""
    found = 0
    for _ in range(REPLICATIONS):
        a, b = rouge_like_pair(rng, 200)
        for look, fraction in enumerate(QUARTERS, start=1):
            level = 0.95 if spending is None else look_level(QUARTERS, look, 0.05, spending)  # type: ignore[arg-type]
            n = round(fraction * 200)
            if decide_bound(paired_t(a[:n], b[:n], level), 0.0) == "PASS":
                found += 1
                break
    return found


@pytest.mark.stats
@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_declared_looks_spend_no_more_than_alpha_on_scores(rng: np.random.Generator, spending: str) -> None:
    assert_holds(stopped(rng, spending))


@pytest.mark.stats
def test_the_same_looks_undeclared_err_twice_as_often(rng: np.random.Generator) -> None:
    assert stopped(rng, None) > 0.09 * REPLICATIONS


@pytest.mark.stats
@pytest.mark.parametrize("threshold", [0.0, -0.1])
def test_declared_looks_at_votes_spend_no_more_than_alpha_at_any_threshold(
    rng: np.random.Generator, threshold: float
) -> None:
    """Votes with 30 % ties of systems that differ by exactly the threshold, looked at after 25, 50, 75, 100."""
    shares = [(0.7 + threshold) / 2, (0.7 - threshold) / 2, 0.3]
    counts = rng.multinomial(25, shares, size=(REPLICATIONS, 4)).cumsum(axis=1)
    passed = np.zeros(REPLICATIONS, dtype=bool)
    for look, fraction in enumerate(QUARTERS, start=1):
        level = look_level(QUARTERS, look)
        outcomes, which = np.unique(counts[:, look - 1, :2], axis=0, return_inverse=True)
        n = 100 * fraction
        low = np.array([changes_interval(Changes(gains, losses, n), level).low for gains, losses in outcomes])
        passed |= low[which] > threshold
    assert_holds(int(passed.sum()))
    assert passed.sum() > 0.02 * REPLICATIONS
