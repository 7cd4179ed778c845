"""Counts: exact errors over all outcomes, and the clustered forms on data whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import special
from scipy import stats as scipy_stats

from llmops.stats import FloatArray, paired_binary, proportion_interval
from llmops.stats.binary import Changes, changes_interval
from llmops.stats.interval import IntArray
from tests.stats.calibration import NOMINAL, tally

UNEQUAL = np.array([1, 2, 2, 3, 3, 4, 5, 6, 8, 9, 12, 15, 20, 24])


def test_design_effect_shrinks_counts_as_korn_and_graubard_say() -> None:
    """Effective n = n / deff * (z / t)^2, then Clopper and Pearson's interval on it, written out here."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(30), 6)
    x = (rng.random(180) < np.repeat(rng.beta(1, 2, 30), 6)).astype(float)
    k, n = x.sum(), 180
    totals = np.bincount(labels, weights=x - x.mean())
    p = (k + 0.5) / (n + 1)
    deff = (totals**2).sum() * 30 / 29 / n**2 / (p * (1 - p) / n)
    effective = n / deff * (special.ndtri(0.95) / scipy_stats.t.ppf(0.95, 29)) ** 2
    ours = proportion_interval(x, 0.95, clusters=labels)
    hit, missed = k / n * effective, (1 - k / n) * effective
    assert ours.low == pytest.approx(scipy_stats.beta.ppf(0.05, hit, missed + 1))
    assert ours.high == pytest.approx(scipy_stats.beta.ppf(0.95, hit + 1, missed))
    assert ours.sd == pytest.approx((p * (1 - p) * deff) ** 0.5)


def test_no_hit_in_any_cluster_counts_clusters_not_cases() -> None:
    found = proportion_interval([0] * 100, 0.95, clusters=[i // 5 for i in range(100)])
    assert found.high >= proportion_interval([0] * 20, 0.95).high
    assert found.low == 0.0


def test_pairs_that_change_together_within_clusters_widen_the_interval() -> None:
    labels = np.repeat(np.arange(40), 5)
    gained, lost = np.repeat(np.arange(40) % 4 == 0, 5), np.repeat(np.arange(40) % 4 == 1, 5)
    plain, clustered = paired_binary(lost, gained, 0.95), paired_binary(lost, gained, 0.95, labels)
    assert (clustered.high - clustered.low) / (plain.high - plain.low) == pytest.approx(5**0.5, rel=0.1)
    assert (clustered.estimate, clustered.n_clusters) == (0.0, 40)


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


def all_tables(n: int, level: float) -> Tables:
    outcomes = [(gains, losses) for gains in range(n + 1) for losses in range(n + 1 - gains)]
    n_gains, n_losses = np.array(outcomes, dtype=float).T
    low = [changes_interval(Changes(gains, losses, n), level).low for gains, losses in outcomes]
    return Tables(n, n_gains, n_losses, np.array(low))


def errors_over(tables: Tables, true_differences: FloatArray) -> list[float]:
    """Exact errors over shares of disagreeing pairs, from the least the difference allows up to 0.97."""
    found = []
    for difference in true_differences:
        for disagreement in np.arange(max(abs(difference), 0.005), 0.98, 0.04):
            p_gain = max((disagreement + difference) / 2, 0.0)
            found.append(tables.error(p_gain, max(disagreement - p_gain, 0.0)))
    return found


@pytest.fixture(scope="module", params=[(12, 0.95), (30, 0.95), (80, 0.95), (40, 0.975)], ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Tables, float]:
    n, level = request.param
    return all_tables(n, level), 1 - level


@pytest.mark.stats
def test_paired_binary_never_errs_above_its_level_at_any_margin(case: tuple[Tables, float]) -> None:
    """Exact, so there is no sampling error to allow for."""
    tables, nominal = case
    errors = errors_over(tables, np.r_[np.arange(-0.9, -0.3, 0.1), np.arange(-0.3, 0.301, 0.025), 0.5, 0.8])
    assert max(errors) <= nominal
    assert max(errors) > 0.8 * nominal


@pytest.mark.stats
def test_exact_yardstick_condemns_walds_interval(case: tuple[Tables, float]) -> None:
    tables, nominal = case
    gain, loss = tables.n_gains / tables.n, tables.n_losses / tables.n
    error = special.ndtri(1 - nominal) * np.sqrt((gain + loss - (gain - loss) ** 2) / tables.n)
    assert replace(tables, low=gain - loss - error).error(0.0, 0.01) > 0.1


@pytest.mark.stats
@pytest.mark.parametrize("n", [2, 10, 50, 200])
def test_proportion_never_errs_above_its_level(n: int) -> None:
    found = [proportion_interval([1] * k + [0] * (n - k), 0.95) for k in range(n + 1)]
    for p in np.linspace(0.005, 0.995, 199):
        weights = scipy_stats.binom.pmf(np.arange(n + 1), n, p)
        assert sum(w for w, one in zip(weights, found, strict=True) if one.low > p) <= NOMINAL
        assert sum(w for w, one in zip(weights, found, strict=True) if one.high < p) <= NOMINAL


def alike(rng: np.random.Generator, sizes: IntArray, shares: list[float], icc: float) -> IntArray:
    """[N] outcomes 0 .. K-1 with these shares; each cluster has its own, from a Dirichlet law with this ICC."""
    own = rng.dirichlet(np.array(shares) * (1 - icc) / icc, size=len(sizes)).cumsum(axis=1)
    chosen = np.repeat(own, sizes, axis=0)
    return (rng.random(len(chosen))[:, None] > chosen[:, :-1]).sum(axis=1)


@pytest.mark.stats
@pytest.mark.parametrize(
    ("sizes", "shares", "icc"),
    [
        (np.full(8, 10), [0.15, 0.15, 0.7], 0.3),
        (UNEQUAL, [0.1, 0.1, 0.8], 0.3),
        (np.full(40, 3), [0.02, 0.02, 0.96], 0.3),
        (np.full(25, 8), [0.05, 0.15, 0.8], 0.1),
    ],
    ids=["8 equal", "14 unequal", "rare", "worse by 10 points"],
)
def test_clustered_pairs_keep_their_level(
    rng: np.random.Generator, sizes: IntArray, shares: list[float], icc: float
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)

    def one():  # type: ignore[no-untyped-def]
        outcome = alike(rng, sizes, shares, icc)
        return paired_binary(outcome == 1, outcome == 0, 0.95, labels)

    tally(one, shares[0] - shares[1]).assert_holds(decided=0.99)


@pytest.mark.stats
@pytest.mark.parametrize(
    ("sizes", "p", "icc"),
    [(np.full(8, 10), 0.2, 0.3), (UNEQUAL, 0.5, 0.3), (np.full(40, 3), 0.03, 0.3)],
    ids=["8 equal", "14 unequal", "rare"],
)
def test_clustered_proportion_keeps_its_level(
    rng: np.random.Generator, sizes: IntArray, p: float, icc: float
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    tally(lambda: proportion_interval(alike(rng, sizes, [1 - p, p], icc), 0.95, labels), p).assert_holds(
        decided=0.99
    )
