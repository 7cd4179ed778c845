"""p-values and their adjustment, against statsmodels and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from llmops.errors import InvalidEvidence
from llmops.stats import (
    benjamini_hochberg,
    holm,
    mean_interval,
    p_value,
    paired_binary,
    paired_corpus,
    proportion_interval,
    win_rate,
)
from tests.stats.calibration import REPLICATIONS, assert_holds


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_adjusted_p_values_are_statsmodels(n: int) -> None:
    p = (np.random.default_rng(n).random(n) ** 3).round(2)
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])


def test_p_value_of_unskewed_differences_is_scipys() -> None:
    half = np.random.default_rng(1).gamma(2, 10, 20)
    x = np.r_[half, -half] + 4
    for threshold in (-3.0, 0.0, 3.0, 5.0):
        theirs = scipy_stats.ttest_1samp(x, threshold, alternative="greater").pvalue
        assert p_value(lambda level: mean_interval(x, level), threshold) == pytest.approx(theirs, rel=1e-5)


def test_p_value_of_a_proportion_is_the_exact_binomial_tests() -> None:
    x = [1] * 14 + [0] * 6
    theirs = scipy_stats.binomtest(14, 20, 0.5, alternative="greater").pvalue
    assert p_value(lambda level: proportion_interval(x, level), 0.5) == pytest.approx(theirs, rel=1e-6)


def test_p_value_and_bound_decide_alike_for_every_kind_of_interval() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(20), 3)
    a, b = rng.random(60) < 0.4, rng.random(60) < 0.6
    stats_a, stats_b = rng.integers(1, 9, (60, 2)), rng.integers(1, 9, (60, 2))
    kinds = [
        lambda level: mean_interval(rng_free, level, labels),
        lambda level: paired_binary(a, b, level),
        lambda level: paired_binary(a, b, level, labels),
        lambda level: win_rate(votes, level, labels, np.arange(60) % 6),
        lambda level: paired_corpus(stats_a, stats_b, lambda s: s[:, 0] / s[:, 1], level),
    ]
    rng_free, votes = rng.normal(size=60), rng.choice([0, 0.5, 1], 60)
    for interval_at in kinds:
        for level in (0.8, 0.95, 0.99):
            low = interval_at(level).low
            assert p_value(interval_at, low - 1e-4) < 1 - level < p_value(interval_at, low + 1e-4)


def test_evidence_in_doubt_has_p_1() -> None:
    assert p_value(lambda level: mean_interval([1.0] * 30, level), 0.0) == 1.0


@pytest.mark.parametrize("p", [[], [1.2], [float("nan")]])
def test_what_is_no_p_value_is_refused(p: list[float]) -> None:
    with pytest.raises(InvalidEvidence):
        holm(p)


def null_p_values(rng: np.random.Generator, n_tests: int, correlation: float) -> np.ndarray:
    """[R, K] one-sided p-values of t tests on 40 cases, correlated between the K tests, all null."""
    p = []
    for _ in range(REPLICATIONS // 500):
        shared = rng.normal(size=(500, 40, 1))
        x = correlation**0.5 * shared + (1 - correlation) ** 0.5 * rng.normal(size=(500, 40, n_tests))
        p.append(scipy_stats.ttest_1samp(x, 0.0, axis=1, alternative="greater").pvalue)
    return np.concatenate(p)


@pytest.mark.stats
@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_any_improved_by_holm_errs_no_more_than_alpha(rng: np.random.Generator, correlation: float) -> None:
    p = null_p_values(rng, 5, correlation)
    assert_holds(int(sum(holm(row).min() < 0.05 for row in p)))
    assert (p.min(axis=1) < 0.05).mean() > 0.1  # without: far above


@pytest.mark.stats
def test_share_of_false_slices_by_benjamini_and_hochberg_is_no_more_than_q(rng: np.random.Generator) -> None:
    """15 null slices and 5 real ones; the false share is averaged, so its bound is normal, not binomial."""
    p = null_p_values(rng, 20, 0.0)
    p[:, 15:] *= 1e-4
    found = np.array([benjamini_hochberg(row) < 0.05 for row in p])
    share = found[:, :15].sum(axis=1) / np.maximum(found.sum(axis=1), 1)
    assert share.mean() - 2.33 * share.std() / len(share) ** 0.5 <= 0.05
    assert found[:, 15:].mean() > 0.99
