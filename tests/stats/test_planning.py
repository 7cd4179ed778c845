"""What a plan promises: sizes against statsmodels and published figures, power against simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from llmops.errors import BadRequest
from llmops.stats import (
    Interval,
    Plan,
    binary_plan,
    decide_bound,
    look_level,
    mean_interval,
    mean_plan,
    n_for_power,
    paired_corpus,
    power_at,
    vote_plan,
)
from llmops.stats.binary import Changes, changes_interval
from tests.stats.calibration import REPLICATIONS, ROUGH, Clusters, design_effect, inflation, population

POWERS = [0.8, 0.9, 0.95]


@pytest.mark.parametrize("power", POWERS)
def test_scores_need_as_many_cases_as_statsmodels_t_test_says(power: float) -> None:
    """Within one case: statsmodels uses the noncentral t law, we the normal one with a t quantile."""
    plan = Plan(threshold=-1.5, sd=8.0)
    theirs = TTestPower().solve_power(1.5 / 8.0, alpha=0.05, power=power, alternative="larger")
    assert n_for_power(plan, power) == pytest.approx(math.ceil(theirs), abs=1)


def test_power_at_the_planned_number_is_just_enough() -> None:
    plan = replace(vote_plan(ties=0.3, threshold=-0.05), looks=(0.5, 1.0))
    n = n_for_power(plan, 0.9)
    assert n is not None
    assert power_at(plan, n - 1) < 0.9 <= power_at(plan, n)


def test_votes_need_a_few_percent_more_than_without_correction_for_steps() -> None:
    """433 votes at 30 % ties and a margin of 5 points by the normal formula; 193 at 7.5, 109 at 10."""
    sizes = [n_for_power(vote_plan(ties=0.3, threshold=-margin), 0.8) for margin in (0.05, 0.075, 0.1)]
    assert sizes == [pytest.approx(433, rel=0.04), pytest.approx(193, rel=0.06), pytest.approx(109, rel=0.08)]
    assert all(size is not None and size > least for size, least in zip(sizes, (433, 193, 109), strict=True))


def test_looks_inflate_the_number_by_their_factor() -> None:
    plan = Plan(threshold=-0.1, sd=1.0)
    looks = (0.25, 0.5, 0.75, 1.0)
    one, four = n_for_power(plan, 0.9), n_for_power(replace(plan, looks=looks), 0.9)
    assert one is not None
    assert four == pytest.approx(one * inflation(looks, 0.05, 0.9), rel=0.01)


def test_clusters_share_of_the_spread_multiplies_the_number() -> None:
    one = n_for_power(Plan(threshold=-0.1, sd=1.0), 0.8)
    clustered = n_for_power(Plan(threshold=-0.1, sd=math.sqrt(design_effect(6, icc=0.2))), 0.8)
    assert one is not None
    assert clustered == pytest.approx(2 * one, abs=4)


def test_truth_at_or_below_the_threshold_cannot_be_planned() -> None:
    assert n_for_power(Plan(threshold=0.0, sd=1.0), 0.8) is None
    assert n_for_power(Plan(threshold=-1.0, sd=1.0, difference=-1.0), 0.8) is None


@pytest.mark.parametrize(
    "ask",
    [
        lambda: n_for_power(Plan(-1.0, 1.0), 80),
        lambda: n_for_power(Plan(-1.0, 0.0), 0.8),
        lambda: power_at(Plan(-1.0, 1.0, per_cluster=0.5), 10),
        lambda: binary_plan(0.7, 0.6, -0.1),
    ],
)
def test_plans_that_make_no_sense_are_refused(ask: Callable[[], object]) -> None:
    with pytest.raises(BadRequest):
        ask()


def share(passes: Callable[[], Interval], threshold: float, n: int = 5000) -> float:
    return sum(decide_bound(passes(), threshold) == "PASS" for _ in range(n)) / n


def close(measured: float, promised: float) -> None:
    assert measured == pytest.approx(promised, abs=0.03)


@pytest.mark.stats
@pytest.mark.parametrize("power", POWERS)
def test_scores_pass_as_often_as_planned(rng: np.random.Generator, power: float) -> None:
    """Non-inferiority of equal systems, scores skewed towards 0, from a pilot of 100,000 cases."""

    def scores(n: int) -> np.ndarray:
        return np.subtract(rng.beta(0.5, 2.0, n), rng.beta(0.5, 2.0, n))

    plan = mean_plan(mean_interval(scores(100_000), 0.95), threshold=-0.05)
    n = n_for_power(plan, power)
    assert n is not None
    close(share(lambda: mean_interval(scores(n), 0.95), -0.05), power)


@pytest.mark.stats
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(
    ("gain", "loss", "threshold"), [(0.12, 0.12, -0.05), (0.2, 0.1, 0.0)], ids=["no worse", "better"]
)
def test_pairs_pass_as_often_as_planned(
    rng: np.random.Generator, gain: float, loss: float, threshold: float, power: float
) -> None:
    n = n_for_power(binary_plan(gain, loss, threshold), power)
    assert n is not None
    close(passed(rng.multinomial(n, [gain, loss, 1 - gain - loss], REPLICATIONS)[:, :2], n, threshold), power)


@pytest.mark.stats
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(("threshold", "rate"), [(-0.1, 0.5), (0.0, 0.6)], ids=["no worse", "better"])
def test_votes_pass_as_often_as_planned(
    rng: np.random.Generator, threshold: float, rate: float, power: float
) -> None:
    n = n_for_power(vote_plan(0.3, threshold, rate), power)
    assert n is not None
    shares = [rate - 0.15, 0.85 - rate, 0.3]
    close(passed(rng.multinomial(n, shares, REPLICATIONS)[:, :2], n, 2 * threshold), power)


def passed(counts: np.ndarray, n: int, threshold: float) -> float:
    """Share of the replications whose lower bound clears the threshold; each outcome is looked at once."""
    outcomes, times = np.unique(counts, axis=0, return_counts=True)
    clear = [changes_interval(Changes(gains, losses, n), 0.95).low > threshold for gains, losses in outcomes]
    return float(times[clear].sum() / times.sum())


@pytest.mark.stats
@pytest.mark.parametrize("power", [0.8, 0.95])
def test_corpus_metric_passes_as_often_as_planned(rng: np.random.Generator, power: float) -> None:
    """2,500 times, each of milliseconds: the share's own error is 0.8 points, the promise 3."""
    people = population("chrf", 2000, ROUGH, replace(ROUGH, replaced=(0.28, 0.95)), seed=83)
    pilot = paired_corpus(people.a, people.b, people.score, level=0.95)
    threshold = people.difference - 0.25 * pilot.sd
    n = n_for_power(mean_plan(pilot, threshold, people.difference), power)
    assert n is not None
    close(share(lambda: paired_corpus(*people.sample(rng, n), people.score, 0.95), threshold, 2500), power)


@pytest.mark.stats
@pytest.mark.parametrize("power", POWERS)
def test_clusters_pass_as_often_as_planned(rng: np.random.Generator, power: float) -> None:
    plan = Plan(threshold=-0.25, sd=math.sqrt(design_effect(5, icc=0.3)), per_cluster=5)
    n = n_for_power(plan, power)
    assert n is not None
    clusters = Clusters(np.full(math.ceil(n / 5), 5), 0.3)
    labels = clusters.labels
    close(share(lambda: mean_interval(clusters.draw(rng), 0.95, labels), -0.25), power)


@pytest.mark.stats
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_looks_pass_as_often_as_planned(rng: np.random.Generator, spending: str, power: float) -> None:
    looks = (0.4, 0.7, 1.0)
    plan = Plan(threshold=-0.3, sd=1.0, looks=looks, spending=spending)  # type: ignore[arg-type]
    n = n_for_power(plan, power)
    assert n is not None
    levels = [look_level(looks, k, 0.05, spending) for k in (1, 2, 3)]  # type: ignore[arg-type]

    def stops() -> bool:
        x = rng.normal(size=n)
        at = (round(fraction * n) for fraction in looks)
        return any(mean_interval(x[:m], level).low > -0.3 for m, level in zip(at, levels, strict=True))

    close(sum(stops() for _ in range(REPLICATIONS)) / REPLICATIONS, power)
