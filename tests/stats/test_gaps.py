"""The largest gap between groups: oracles for two and more groups, and the level of both bounds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from llmops.errors import InvalidEvidence
from llmops.stats import decide_bound, largest_gap
from tests.stats.calibration import Clusters, tally


def mirrored(*halves: list[float]) -> tuple[np.ndarray, list[str]]:
    """Groups without skewness: each half and its negative, moved by the group's number."""
    values = [np.r_[half, np.negative(half)] + i for i, half in enumerate(halves)]
    names = [name for name, own in zip("abcdef", values, strict=False) for _ in own]
    return np.concatenate(values), names


def test_two_groups_have_welchs_interval() -> None:
    rng = np.random.default_rng(1)
    x, names = mirrored(rng.normal(size=12).tolist(), (3 * rng.normal(size=20)).tolist())
    gap = largest_gap(x, names, 0.95)
    theirs = scipy_stats.ttest_ind(x[24:], x[:24], equal_var=False).confidence_interval(0.9)
    assert gap.interval.high == pytest.approx(theirs.high)
    assert (gap.highest, gap.lowest) == ("b", "a")
    assert gap.interval.estimate == pytest.approx(1.0)


def test_lower_bound_of_three_equal_groups_is_tukeys() -> None:
    """Equal sizes and spreads: Games and Howell's statistic with Welch's df of each pair, 2 (n - 1)."""
    half = np.random.default_rng(2).normal(size=21).tolist()
    x, names = mirrored(half, half, half)
    gap = largest_gap(np.where(np.array(names) == "c", x + 3, x), names, 0.95).interval
    se = (2 * np.var(np.r_[half, np.negative(half)], ddof=1) / 42) ** 0.5
    # the tabulated degrees of freedom below 82
    q = scipy_stats.studentized_range.ppf(0.95, 3, 60) / 2**0.5
    assert gap.low == pytest.approx(5.0 - q * se, rel=1e-6)
    assert gap.high == pytest.approx(5.0 + scipy_stats.t.ppf(0.95, 82) * se, rel=1e-6)


def test_groups_within_shared_clusters_are_compared_within_them() -> None:
    """Each cluster has one case of each group, so its own height cancels: the paired t interval of the difference."""
    rng = np.random.default_rng(3)
    height, half = 10 * rng.normal(size=40), rng.normal(size=20)
    difference = np.r_[half, -half] + 2
    x = np.r_[height, height + difference]
    gap = largest_gap(x, ["a"] * 40 + ["b"] * 40, 0.95, clusters=[*range(40)] * 2).interval
    assert gap.sd / 80**0.5 == pytest.approx(scipy_stats.sem(difference), rel=1e-6)
    blind = largest_gap(x, ["a"] * 40 + ["b"] * 40, 0.95).interval
    assert blind.high - blind.low > 3 * (gap.high - gap.low)


def test_group_of_few_or_equal_values_puts_the_gap_in_doubt() -> None:
    rng = np.random.default_rng(4)
    few = largest_gap(rng.normal(size=34), ["a"] * 30 + ["b"] * 4, 0.95).interval
    assert few.doubt == "group b: 4 independent units are too few: at least 8 are needed"
    flat = largest_gap([*rng.normal(size=30), *[0.5] * 30], ["a"] * 30 + ["b"] * 30, 0.95).interval
    assert "equal" in str(flat.doubt)
    assert decide_bound(flat.mirrored(), -1e6) == "INCONCLUSIVE"


@pytest.mark.parametrize("names", [["a"] * 10, ["a"] * 9 + ["b"]])
def test_one_group_or_a_group_of_one_case_has_no_gap(names: list[str]) -> None:
    with pytest.raises(InvalidEvidence, match="gap"):
        largest_gap(np.arange(10.0), names, 0.95)


SIZES = {"3 groups": [30, 30, 30], "5 unequal groups": [12, 20, 40, 60, 100]}


@pytest.mark.stats
@pytest.mark.parametrize("sizes", SIZES)
def test_equal_groups_seldom_show_a_gap(rng: np.random.Generator, sizes: str) -> None:
    """The lower bound is above a true gap of 0 no more often than the level says, spreads being unequal."""
    names = np.repeat(np.arange(len(SIZES[sizes])), SIZES[sizes])
    spread = np.repeat(np.linspace(3, 1, len(SIZES[sizes])), SIZES[sizes])
    found = tally(lambda: largest_gap(spread * rng.normal(size=len(names)), names, 0.95).interval, 0.0)
    found.assert_holds(decided=0.4)
    assert found.n_low_wrong > 0.01 * found.n


@pytest.mark.stats
def test_largest_gap_at_its_limit_passes_no_more_often_than_the_level_says(rng: np.random.Generator) -> None:
    """Two groups one apart and one in between, skewed: the upper bound lies below 1 at 5 % at most."""
    names = np.repeat(np.arange(3), 60)
    found = tally(lambda: largest_gap(rng.exponential(1.0, 180) + names / 2, names, 0.95).interval, 1.0)
    found.assert_holds(decided=0.3)


@pytest.mark.stats
def test_clusters_that_hold_several_groups_keep_the_gaps_level(rng: np.random.Generator) -> None:
    clusters = Clusters(np.full(20, 6), 0.4)
    labels, names = clusters.labels, np.tile(np.arange(3), 40)
    found = tally(lambda: largest_gap(clusters.draw(rng), names, 0.95, labels).interval, 0.0, n=10_000)
    found.assert_holds(decided=0.7)
