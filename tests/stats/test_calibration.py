"""Every interval the gate uses keeps its 5 %: under the null, at the margin, by enumeration where possible.

Populations are finite and known, corpora are drawn from them, so the true difference is not an estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sacrebleu.significance import Result, _paired_bs_test
from scipy import special
from scipy import stats as scipy_stats

from llmops.stats import FloatArray, decide_bound, n_needed, paired_binary, paired_corpus, paired_t
from tests.stats.calibration import (
    CLOSE,
    FAR,
    NOMINAL,
    ROUGH,
    Noise,
    Population,
    assert_at_nominal,
    population,
    rouge_like_pair,
)

pytestmark = pytest.mark.stats

CORPUS_SIZES = [128, 500]


@pytest.fixture(scope="module", params=["bleu", "chrf"])
def equals(request: pytest.FixtureRequest) -> Population:
    """Two systems of the same make, 3,000 cases."""
    return population(request.param, 3000, ROUGH, ROUGH, seed=31)


def test_corpus_difference_of_32_cases_errs_little_more_than_its_level_under_the_null(
    equals: Population,
) -> None:
    rng = np.random.default_rng(107)
    trials = [paired_corpus(*equals.sample_null(rng, 32), equals.score, level=0.95) for _ in range(4000)]
    assert np.mean([trial.low > 0 for trial in trials]) < 0.065
    assert np.mean([trial.high < 0 for trial in trials]) < 0.065


@pytest.mark.parametrize("n", CORPUS_SIZES)
def test_corpus_difference_keeps_its_level_under_the_null(equals: Population, n: int) -> None:
    rng = np.random.default_rng(37)
    trials = [paired_corpus(*equals.sample_null(rng, n), equals.score, level=0.95) for _ in range(4000)]
    assert_at_nominal([trial.low > 0 for trial in trials])
    assert_at_nominal([trial.high < 0 for trial in trials])


@pytest.mark.parametrize("n", CORPUS_SIZES)
def test_bleu_near_zero_does_not_break_the_level_under_the_null(n: int) -> None:
    """Few 4-grams match in the whole corpus, as with an untuned base model; 7 % is the most allowed."""
    people = population("bleu", 3000, FAR, FAR, seed=41)
    rng = np.random.default_rng(43)
    trials = [paired_corpus(*people.sample_null(rng, n), people.score, level=0.95) for _ in range(4000)]
    assert np.mean([trial.low > 0 for trial in trials]) < 0.07
    assert np.mean([trial.high < 0 for trial in trials]) < 0.07


@pytest.mark.parametrize("n", CORPUS_SIZES)
@pytest.mark.parametrize("metric", ["bleu", "chrf"])
@pytest.mark.parametrize("baseline", [ROUGH, replace(CLOSE, dropped=0.3)], ids=["worse", "shorter"])
def test_corpus_bounds_cover_a_true_difference(metric: str, baseline: Noise, n: int) -> None:
    """At the margin, where a non-inferiority gate errs: systems that differ in variance and length too."""
    people = population(metric, 3000, baseline, CLOSE, seed=47)
    truth = people.difference
    rng = np.random.default_rng(53)
    trials = [paired_corpus(*people.sample(rng, n), people.score, level=0.95) for _ in range(4000)]
    assert abs(truth) > 3
    assert_at_nominal([decide_bound(trial, truth) == "PASS" for trial in trials])
    assert_at_nominal([decide_bound(trial, truth) == "FAIL" for trial in trials])


def percentile_bounds(
    people: Population, sample: tuple[FloatArray, FloatArray], rng: np.random.Generator
) -> tuple[float, float]:
    n = len(sample[0])
    weights = rng.multinomial(n, np.full(n, 1 / n), size=400).astype(float)
    low, high = np.quantile(
        people.score(weights @ sample[1]) - people.score(weights @ sample[0]), [0.05, 0.95]
    )
    return float(low), float(high)


def test_percentile_bootstrap_rejects_too_often_where_the_jackknife_does_not() -> None:
    people = population("bleu", 3000, FAR, FAR, seed=101)
    rng = np.random.default_rng(103)
    samples = [people.sample_null(rng, 128) for _ in range(1000)]
    jackknife = [paired_corpus(*sample, people.score, level=0.95) for sample in samples]
    percentile = [percentile_bounds(people, sample, rng) for sample in samples]
    _, most = scipy_stats.binom.interval(0.999, len(samples), 2 * NOMINAL)
    assert sum(trial.low > 0 or trial.high < 0 for trial in jackknife) <= most
    assert sum(low > 0 or high < 0 for low, high in percentile) > most


class PrecomputedBLEU(BLEU):
    """sacrebleu's BLEU over statistics in place of texts, so that its own test can run thousands of times."""

    def _extract_corpus_statistics(self, hypotheses: Any, references: Any) -> Any:
        return hypotheses


def sacrebleu_p_value(a: FloatArray, b: FloatArray, seed: int) -> float:
    metric = PrecomputedBLEU()
    rows_a, rows_b = a.astype(int).tolist(), b.astype(int).tolist()
    known = {"bleu": (rows_a, Result(metric._aggregate_and_compute(rows_a).score))}
    _, results = _paired_bs_test(known, "b", rows_b, None, {"bleu": metric}, n_samples=300, seed=seed)
    return float(results["bleu"].p_value)


def test_the_yardstick_condemns_sacrebleus_paired_bootstrap_on_data_where_ours_stands() -> None:
    people = population("bleu", 2000, ROUGH, ROUGH, seed=59)
    rng = np.random.default_rng(61)
    samples = [people.sample_null(rng, 128) for _ in range(1000)]
    trials = [paired_corpus(*sample, people.score, level=1 - NOMINAL / 2) for sample in samples]
    assert_at_nominal([not trial.low <= 0 <= trial.high for trial in trials])
    theirs = [sacrebleu_p_value(*sample, seed=i) < NOMINAL for i, sample in enumerate(samples)]
    with pytest.raises(AssertionError, match="anticonservative"):
        assert_at_nominal(theirs)


@pytest.mark.parametrize("n", [32, 128, 500])
def test_paired_t_keeps_its_level_on_skewed_scores_of_equal_systems(n: int) -> None:
    rng = np.random.default_rng(67)
    trials = [paired_t(*rouge_like_pair(rng, n), level=0.95) for _ in range(4000)]
    assert_at_nominal([trial.low > 0 for trial in trials])
    assert_at_nominal([trial.high < 0 for trial in trials])


@pytest.mark.parametrize("n", [128, 500])
def test_paired_t_covers_a_skewed_true_difference(n: int) -> None:
    rng = np.random.default_rng(71)
    trials = [paired_t(*rouge_like_pair(rng, n, gain=10.0), level=0.95) for _ in range(4000)]
    assert_at_nominal([trial.low > 10.0 for trial in trials])
    assert_at_nominal([trial.high < 10.0 for trial in trials])


@dataclass(frozen=True, eq=False)
class Tables:
    """All outcomes of n pairs: how many were gained and lost, and the lower bound each outcome gives."""

    n: int
    n_gains: FloatArray
    n_losses: FloatArray
    low: FloatArray

    def error(self, p_gain: float, p_loss: float) -> float:
        """Exact probability that the lower bound exceeds the true difference."""
        wrong = self.low > p_gain - p_loss + 1e-9
        counts = np.c_[self.n_gains, self.n_losses, self.n - self.n_gains - self.n_losses][wrong]
        return float(scipy_stats.multinomial.pmf(counts, self.n, [p_gain, p_loss, 1 - p_gain - p_loss]).sum())


def all_tables(n: int) -> Tables:
    outcomes = [(gains, losses) for gains in range(n + 1) for losses in range(n + 1 - gains)]
    n_gains, n_losses = np.array(outcomes, dtype=float).T

    def low(gains: int, losses: int) -> float:
        a, b = np.zeros(n), np.zeros(n)
        b[:gains], a[gains : gains + losses] = 1, 1
        return paired_binary(a, b, level=0.95).low

    return Tables(n, n_gains, n_losses, np.array([low(*outcome) for outcome in outcomes]))


@pytest.fixture(scope="module", params=[50, 128])
def tables(request: pytest.FixtureRequest) -> Tables:
    return all_tables(request.param)


@pytest.mark.parametrize("p", [0.02, 0.1, 0.3, 0.5, 0.9])
def test_binary_keeps_its_level_under_the_null_at_every_base_rate(tables: Tables, p: float) -> None:
    """Two equal systems, each right with probability p on its own; the error is enumerated, not sampled."""
    changed = p * (1 - p)
    error = tables.error(changed, changed)
    assert error < 0.06
    if tables.n * changed > 4:
        assert error > 0.04


def errors_over(tables: Tables, true_differences: FloatArray) -> list[float]:
    """Exact errors over shares of disagreeing pairs, from the least the difference allows up to 0.95."""
    found = []
    for difference in true_differences:
        for disagreement in np.arange(max(abs(difference), 0.005), 0.96, 0.01):
            p_gain = max((disagreement + difference) / 2, 0.0)
            found.append(tables.error(p_gain, max(disagreement - p_gain, 0.0)))
    return found


def test_binary_keeps_its_level_at_every_non_inferiority_margin(tables: Tables) -> None:
    errors = errors_over(tables, np.arange(-0.3, 0.001, 0.01))
    assert 0.05 < max(errors) < 0.065


def test_binary_errs_9_percent_at_worst_when_superiority_rests_on_few_disagreements(tables: Tables) -> None:
    errors = errors_over(tables, np.arange(0.01, 0.301, 0.01))
    assert 0.065 < max(errors) < 0.09
    assert np.mean(errors) == pytest.approx(NOMINAL, abs=0.002)


def test_the_exact_yardstick_condemns_walds_interval(tables: Tables) -> None:
    gain, loss = tables.n_gains / tables.n, tables.n_losses / tables.n
    error = special.ndtri(0.95) * np.sqrt((gain + loss - (gain - loss) ** 2) / tables.n)
    wald = replace(tables, low=gain - loss - error)
    assert wald.error(0.0, 0.01) > 0.25


def test_power_rises_with_the_number_of_cases() -> None:
    people = population("chrf", 3000, replace(ROUGH, dropped=0.15), ROUGH, seed=73)
    rng = np.random.default_rng(79)

    def power(n: int) -> float:
        trials = [paired_corpus(*people.sample(rng, n), people.score, level=0.95) for _ in range(600)]
        return float(np.mean([decide_bound(trial, 0.0) == "PASS" for trial in trials]))

    powers = [power(n) for n in (32, 64, 128, 256)]
    assert powers[0] > NOMINAL
    assert all(later > earlier + 0.03 for earlier, later in pairwise(powers)), powers


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_n_needed_cases_pass_a_corpus_gate_four_times_in_five(metric: str) -> None:
    people = population(metric, 3000, ROUGH, replace(ROUGH, replaced=(0.28, 0.95)), seed=83)
    pilot = paired_corpus(people.a, people.b, people.score, level=0.95)
    margin = -people.difference / 2 - pilot.sd / 10
    n = n_needed(pilot, margin)
    assert n is not None
    rng = np.random.default_rng(89)
    trials = [paired_corpus(*people.sample(rng, n), people.score, level=0.95) for _ in range(2000)]
    passed = np.mean([decide_bound(trial, margin) == "PASS" for trial in trials])
    assert passed == pytest.approx(0.8, abs=0.035)


def test_n_needed_pairs_pass_a_binary_gate_four_times_in_five() -> None:
    p_gain, p_loss, margin = 0.12, 0.12, -0.05
    share = math.sqrt(p_gain + p_loss)
    seen = paired_binary([0] * 120 + [1] * 880, [1] * 120 + [0] * 120 + [1] * 760, level=0.95)
    n = n_needed(seen, margin)
    assert seen.sd == pytest.approx(share, rel=0.01)
    assert n is not None
    rng = np.random.default_rng(97)

    def passes() -> bool:
        change = rng.choice([1, -1, 0], n, p=[p_gain, p_loss, 1 - p_gain - p_loss])
        return decide_bound(paired_binary(change == -1, change == 1, level=0.95), margin) == "PASS"

    assert np.mean([passes() for _ in range(2000)]) == pytest.approx(0.8, abs=0.03)
