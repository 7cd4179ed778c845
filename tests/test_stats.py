"""Intervals, verdicts and sample sizes against closed forms, published figures, scipy and statsmodels."""

from __future__ import annotations

import doctest
import importlib
import math
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint

from llmops.errors import BadRequest, InvalidEvidence
from llmops.stats import (
    FloatArray,
    Interval,
    corpus_interval,
    decide_bound,
    mean_interval,
    n_needed,
    paired_binary,
    paired_bounded,
    paired_corpus,
    paired_t,
    proportion_interval,
)
from tests.stats.calibration import NOMINAL, rouge_like_pair, tally

MODULES = [
    importlib.import_module(f"llmops.stats.{name}")
    for name in (
        "binary",
        "gaps",
        "guard",
        "interval",
        "looks",
        "means",
        "multiplicity",
        "planning",
        "student",
        "wins",
    )
]


def answers(n_gains: int, n_losses: int, n: int) -> tuple[list[int], list[int]]:
    """Baseline and candidate right (1) or wrong (0) on n cases, of which so many changed."""
    a = [0] * n_gains + [1] * n_losses + [1] * (n - n_gains - n_losses)
    b = [1] * n_gains + [0] * n_losses + [1] * (n - n_gains - n_losses)
    return a, b


def ratio(summed: FloatArray) -> FloatArray:
    """Sum of the first statistic over the sum of the second."""
    return summed[:, 0] / summed[:, 1]


@pytest.mark.parametrize("level", [0.9, 0.95, 0.975])
def test_paired_t_of_unskewed_differences_equals_scipys_paired_interval(level: float) -> None:
    half = np.random.default_rng(3).gamma(2, 10, 20)
    a = np.random.default_rng(4).gamma(2, 10, 40)
    b = a + 1.5 + np.r_[half, -half]
    ours = paired_t(a, b, level)
    theirs = scipy_stats.ttest_rel(b, a).confidence_interval(2 * level - 1)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    assert ours.estimate == pytest.approx(b.mean() - a.mean())
    assert ours.sd / math.sqrt(ours.n) == pytest.approx(scipy_stats.sem(b - a))


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=30, unique=True))
def test_no_bound_is_narrower_than_students_and_only_the_side_of_the_tail_moves(values: list[float]) -> None:
    ours = mean_interval(values, level=0.95)
    theirs = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.9)
    slack = 1e-6 * (theirs.high - theirs.low)
    assert ours.low <= theirs.low + slack
    assert ours.high >= theirs.high - slack


def test_long_tail_moves_its_bound_by_halls_transformation() -> None:
    """T + k T^2 / 3 + k^2 T^3 / 27 + k / 6 of the moved bound is Student's quantile; k from scipy's skewness."""
    x = np.random.default_rng(8).exponential(1.0, 60)
    k = 4 / 3 * scipy_stats.skew(x, bias=False) / math.sqrt(60)
    t = (x.mean() - mean_interval(x, level=0.95).high) / scipy_stats.sem(x)
    assert t + k * t**2 / 3 + k**2 * t**3 / 27 + k / 6 == pytest.approx(scipy_stats.t.ppf(0.05, 59))
    assert mean_interval(x, 0.95).low == pytest.approx(
        scipy_stats.ttest_1samp(x, 0).confidence_interval(0.9).low
    )


def test_level_is_that_of_each_bound() -> None:
    x = np.random.default_rng(5).normal(size=15)
    x = np.r_[x, -x]
    one_sided = scipy_stats.ttest_1samp(x, 0, alternative="greater").confidence_interval(0.95)
    assert mean_interval(x, level=0.95).low == pytest.approx(one_sided.low)


def test_equal_differences_give_a_point_without_rounding() -> None:
    interval = paired_t([0.1] * 7, [0.1] * 7, level=0.95)
    assert (interval.estimate, interval.low, interval.high, interval.sd) == (0.0, 0.0, 0.0, 0.0)
    assert mean_interval([0.1] * 3, level=0.95).estimate == 0.1


def test_swapping_the_systems_mirrors_every_difference() -> None:
    rng = np.random.default_rng(11)
    a, b = rng.uniform(size=(2, 25))
    for there, back in (
        (paired_t(a, b, 0.95), paired_t(b, a, 0.95)),
        (paired_binary(a > 0.4, b > 0.6, 0.95), paired_binary(b > 0.6, a > 0.4, 0.95)),
    ):
        mirrored = (-back.estimate, -back.high, -back.low)
        assert (there.estimate, there.low, there.high) == pytest.approx(mirrored)


def test_tango_without_its_correction_gives_the_published_interval() -> None:
    """Fagerland, Lydersen and Laake, Stat. Med. 33 (2014) 2850: airway hyper-responsiveness, 21 children.

    Before: 2 ill, of whom 1 stays so; after: 8 ill. Published [-0.517, -0.026]; correcting for steps and skewness
    only widens it.
    """
    before, after = [1] + [1] + [0] * 7 + [0] * 12, [1] + [0] + [1] * 7 + [0] * 12
    interval = paired_binary(after, before, level=0.975)
    assert -0.55 < interval.low < -0.517
    assert -0.026 < interval.high < 0.01
    z = float(special.ndtri(0.975))
    for end, sign in ((-0.517, -1), (-0.026, 1)):
        score, shift = score_of(1, 7, 21, end)
        assert abs(score) == pytest.approx(z, abs=0.01), (sign, shift)


def test_tango_with_no_disagreement_has_its_closed_form() -> None:
    """(n d - 0.56)^2 = z^2 n d (1 - d), a quadratic in the bound d."""
    n, z2 = 50, special.ndtri(0.95) ** 2
    bound = max(np.roots([n * n + z2 * n, -(1.12 * n + z2 * n), 0.56**2]))
    interval = paired_binary([1] * 50, [1] * 50, level=0.95)
    assert (interval.low, interval.high) == pytest.approx((-bound, bound))


def score_of(n_gains: int, n_losses: int, n: int, d: float) -> tuple[float, float]:
    """The score of a true difference d without correction, by numerical likelihood, and the correction in its units."""

    def minus_log_likelihood(p_loss: float) -> float:
        p_gain = p_loss + d
        counts = special.xlogy(n_gains, p_gain) + special.xlogy(n_losses, p_loss)
        return -float(counts + special.xlogy(n - n_gains - n_losses, 1 - p_gain - p_loss))

    least, most = max(0.0, -d), (1 - d) / 2
    p_loss = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(least, most), method="bounded", options={"xatol": 1e-12}
    ).x
    change = scipy_stats.rv_discrete(values=([-1, 0, 1], [p_loss, 1 - 2 * p_loss - d, p_loss + d]))
    third = float(change.stats(moments="s")) * change.std()
    z = special.ndtri(0.95)
    error = math.sqrt(n) * change.std()
    return (n_gains - n_losses - n * d) / error, (0.56 + max(0.0, third) * (z * z - 1) / 6) / error


@given(st.integers(0, 30), st.integers(0, 30), st.integers(2, 60))
def test_tango_bound_is_where_a_numerical_score_test_rejects(
    n_gains: int, n_losses: int, n_same: int
) -> None:
    n = n_gains + n_losses + n_same
    low = paired_binary(*answers(n_gains, n_losses, n), level=0.95).low
    score, shift = score_of(n_gains, n_losses, n, low)
    assert score - shift == pytest.approx(special.ndtri(0.95), abs=4e-3)


def test_binary_verdict_at_zero_is_mcnemars_between_corrected_and_uncorrected() -> None:
    for n_gains in range(0, 31, 2):
        for n_losses in range(0, 31 - n_gains):
            interval = paired_binary(*answers(n_gains, n_losses, 30), level=0.95)
            changed = n_gains + n_losses
            if changed == 0:
                continue
            # statsmodels' correction is 1; ours is 0.56 of it
            full, none = (
                math.sqrt(mcnemar([[0, n_gains], [n_losses, 0]], exact=False, correction=c).statistic)
                for c in (True, False)
            )
            if n_gains > n_losses:
                rejects = 0.56 * full + 0.44 * none > special.ndtri(1 - NOMINAL)
                assert (interval.low > 0) == rejects, (n_gains, n_losses)


@pytest.mark.parametrize("n_hits", [0, 1, 7, 19, 20])
def test_proportion_interval_equals_statsmodels_exact_one(n_hits: int) -> None:
    interval = proportion_interval([1] * n_hits + [0] * (20 - n_hits), level=0.95)
    theirs = proportion_confint(n_hits, 20, alpha=0.10, method="beta")
    assert (interval.low, interval.high) == pytest.approx(theirs)


def test_proportion_of_none_and_all_reaches_the_end_of_the_scale() -> None:
    none, every = proportion_interval([0] * 9, 0.95), proportion_interval([1] * 9, 0.95)
    assert (none.low, every.high) == (0.0, 1.0)
    assert none.high == pytest.approx(1 - every.low)
    assert none.high > 0


def test_jackknife_of_a_mean_is_students_interval() -> None:
    """Tukey's pseudo-values of a mean are the values themselves."""
    a, b = np.random.default_rng(7).gamma(1, 20, (2, 60))
    ones = np.ones(60)
    corpus = paired_corpus(np.c_[a, ones], np.c_[b, ones], ratio, level=0.95)
    plain = paired_t(a, b, level=0.95)
    assert (corpus.estimate, corpus.low, corpus.high, corpus.sd) == pytest.approx(
        (plain.estimate, plain.low, plain.high, plain.sd), rel=1e-9
    )
    single = corpus_interval(np.c_[a, ones], ratio, level=0.95)
    alone = mean_interval(a, level=0.95)
    assert (single.low, single.high) == pytest.approx((alone.low, alone.high))


def test_jackknife_error_of_a_ratio_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(13)
    length = rng.integers(5, 40, 300).astype(float)
    hits_a, hits_b = rng.binomial(length.astype(int), 0.3), rng.binomial(length.astype(int), 0.5)
    ours = paired_corpus(np.c_[hits_a, length], np.c_[hits_b, length], ratio, level=0.95)
    theirs = scipy_stats.bootstrap(
        (hits_a, hits_b, length),
        lambda a, b, n, axis: (b.sum(axis) - a.sum(axis)) / n.sum(axis),
        paired=True, vectorized=True, n_resamples=4000, method="basic", rng=rng,
    )  # fmt: skip
    assert ours.sd / math.sqrt(300) == pytest.approx(theirs.standard_error, rel=0.05)
    assert ours.estimate == pytest.approx((hits_b.sum() - hits_a.sum()) / length.sum())


def test_a_system_against_itself_differs_by_exactly_nothing() -> None:
    counts = np.random.default_rng(17).integers(1, 30, (50, 2))
    interval = paired_corpus(counts, counts, ratio, level=0.95)
    assert (interval.estimate, interval.low, interval.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("low", "high", "threshold", "verdict"),
    [
        (-0.9, 2.0, -1.0, "PASS"),
        (-1.0, 2.0, -1.0, "INCONCLUSIVE"),  # touching the margin is not clearing it
        (-3.0, -1.1, -1.0, "FAIL"),
        (-3.0, -1.0, -1.0, "INCONCLUSIVE"),
        (0.4, 2.0, 0.5, "INCONCLUSIVE"),
        (0.6, 2.0, 0.5, "PASS"),
        (-0.2, 0.4, 0.5, "FAIL"),
        (0.0, 0.0, 0.0, "INCONCLUSIVE"),
    ],
)
def test_verdict_follows_the_bounds(low: float, high: float, threshold: float, verdict: str) -> None:
    interval = Interval((low + high) / 2, low, high, level=0.95, n=100, sd=1.0, method="t")
    assert decide_bound(interval, threshold) == verdict


def test_a_bound_that_is_no_number_is_refused_not_inconclusive() -> None:
    broken = Interval(0.0, math.nan, 1.0, level=0.95, n=10, sd=1.0, method="t")
    with pytest.raises(InvalidEvidence, match="not finite"):
        decide_bound(broken, 0.0)


@pytest.mark.parametrize(("margin", "n_votes"), [(0.10, 433), (0.15, 193), (0.20, 109)])
def test_votes_for_equal_systems_with_30_percent_ties(margin: float, n_votes: int) -> None:
    """Votes are -1, 0 or 1, so sd^2 = 0.7 between equal systems; 5 points of win rate are 0.10 here."""
    seen = Interval(0.04, -0.2, 0.28, level=0.95, n=30, sd=math.sqrt(0.7), method="t")
    assert n_needed(seen, -margin, assumed=0.0) == n_votes


@pytest.mark.parametrize("power", [0.8, 0.9])
def test_n_needed_equals_statsmodels_one_sample_power(power: float) -> None:
    seen = Interval(-0.4, -2.0, 1.2, level=0.95, n=60, sd=8.0, method="t")
    theirs = NormalIndPower().solve_power(
        effect_size=(-0.4 + 1.5) / 8.0, alpha=0.05, power=power, ratio=0, alternative="larger"
    )
    assert n_needed(seen, -1.5, power) == math.ceil(theirs)


@pytest.mark.parametrize("estimate", [-1.5, -1.6])
def test_no_number_of_cases_helps_at_or_beyond_the_margin(estimate: float) -> None:
    seen = Interval(estimate, -3.0, 0.5, level=0.95, n=60, sd=8.0, method="t")
    assert n_needed(seen, -1.5) is None
    assert n_needed(seen, -1.5, assumed=0.0) is not None


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=12), st.integers(-50, 50))
def test_an_inconclusive_result_always_needs_more_cases_than_it_had(
    values: list[int], threshold: int
) -> None:
    seen = mean_interval(values, level=0.95)
    needed = n_needed(seen, threshold)
    if decide_bound(seen, threshold) == "INCONCLUSIVE" and needed is not None:
        assert needed > len(values)


def test_binary_sd_is_bonett_and_prices() -> None:
    """J. Educ. Behav. Stat. 37 (2012) 479: each count of disagreements plus 1, over n + 2."""
    seen = paired_binary(*answers(9, 3, 40), level=0.95)
    assert seen.sd == pytest.approx(math.sqrt(10 / 42 + 4 / 42 - (6 / 42) ** 2))


def test_binary_without_any_disagreement_still_needs_cases() -> None:
    seen = paired_binary([1] * 20, [1] * 20, level=0.95)
    assert decide_bound(seen, -0.05) == "INCONCLUSIVE"
    needed = n_needed(seen, -0.05)
    assert needed is not None
    assert decide_bound(paired_binary([1] * needed, [1] * needed, level=0.95), -0.05) == "PASS"


def test_scaling_changes_the_unit_of_every_number_but_no_verdict() -> None:
    seen = paired_binary(*answers(9, 3, 40), level=0.95)
    points = seen.scaled(100)
    assert points.low == pytest.approx(100 * seen.low)
    assert (points.n, points.level) == (seen.n, seen.level)
    assert n_needed(points, -5.0) == n_needed(seen, -0.05)


@pytest.mark.parametrize(
    ("a", "b"),
    [([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 2.0]), ([], []), ([[1.0]], [[2.0]])],
)
def test_scores_that_do_not_pair_up_are_no_evidence(a: list[float], b: list[float]) -> None:
    with pytest.raises(InvalidEvidence):
        paired_t(a, b, level=0.95)


def test_a_graded_score_is_no_binary_one() -> None:
    with pytest.raises(InvalidEvidence, match=r"0\.5 is not 0 or 1"):
        paired_binary([0, 1, 0.5], [0, 1, 1], level=0.95)


@pytest.mark.parametrize("level", [0.05, 0.5, 1.0, 95])
def test_a_level_that_is_no_one_sided_confidence_is_refused(level: float) -> None:
    with pytest.raises(BadRequest, match="one-sided"):
        mean_interval([1, 2, 3], level)


def test_equal_systems_pass_superiority_at_no_more_than_the_nominal_rate() -> None:
    """The quick form of tests/stats/test_means.py."""
    rng = np.random.default_rng(23)
    found = tally(lambda: paired_t(*rouge_like_pair(rng, 64), level=0.95), truth=0.0, n=1000)
    found.assert_holds(decided=0.98)
    assert found.n_low_wrong > 20


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_examples_in_docstrings_hold(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 0) == (0, True)


def test_bounded_difference_is_hoeffdings_where_cases_differ_by_many_amounts() -> None:
    """Half width by hand: range 200, n 24, 200 * sqrt(ln 20 / 48)."""
    x, y = [0.0] * 24, [float(i) for i in range(50, 74)]
    found = paired_bounded(x, y, level=0.95, span=100)
    assert found.low == pytest.approx(61.5 - 200 * math.sqrt(math.log(20) / 48))
    assert (found.estimate, found.high, found.doubt) == (61.5, 100.0, None)
    with pytest.raises(InvalidEvidence, match="outside of"):
        paired_bounded([101.0, 1.0], [1.0, 2.0], level=0.95, span=100)


def test_bounded_difference_takes_unseen_cases_at_their_worst() -> None:
    """All of 100 cases alike: at most 1 - 0.05^(1/100) of the others differ, by 100 at most."""
    share = 1 - 0.05 ** (1 / 100)
    same = paired_bounded([50.0] * 100, [50.0] * 100, level=0.95, span=100)
    assert (same.low, same.high) == (pytest.approx(-100 * share), pytest.approx(100 * share))
    theirs = proportion_confint(2, 40, alpha=0.1, method="beta")[1]
    found = paired_bounded([0.0] * 40, [80.0] * 38 + [10.0, 30.0], level=0.95, span=100)
    assert found.low == pytest.approx(80 * (1 - theirs) - 100 * theirs)


def test_moderate_skewness_widens_the_bounds_to_cantellis() -> None:
    values = -np.log1p(-(np.arange(40) + 0.5) / 40)  # quantiles of an exponential distribution
    found = mean_interval(values, level=0.95)
    assert (found.method, found.doubt) == ("t, Cantelli's bounds", None)
    assert found.estimate - found.low == pytest.approx(math.sqrt(19) * values.std(ddof=1) / math.sqrt(40))
