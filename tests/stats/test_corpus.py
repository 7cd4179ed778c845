"""The jackknife of corpus metrics: oracle of the clustered form, and its level on BLEU and chrF of known corpora."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sacrebleu.significance import Result, _paired_bs_test

from llmops.stats import FloatArray, corpus_interval, mean_interval, paired_corpus
from tests.stats.calibration import (
    CLOSE,
    FAR,
    NOMINAL,
    ROUGH,
    Noise,
    Population,
    assert_holds,
    population,
    tally,
)

SHORT = replace(CLOSE, dropped=0.3)


def ratio(summed: FloatArray) -> FloatArray:
    return summed[:, 0] / summed[:, 1]


def test_clustered_jackknife_of_a_mean_is_the_clustered_interval_of_the_mean() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(20), rng.integers(1, 9, 20))
    x = rng.normal(size=len(labels)) + rng.normal(size=20)[labels]
    corpus = corpus_interval(np.c_[x, np.ones(len(x))], ratio, 0.95, labels)
    mean = mean_interval(x, 0.95, labels)
    assert (corpus.low, corpus.high, corpus.sd) == pytest.approx((mean.low, mean.high, mean.sd))
    assert (corpus.n, corpus.n_clusters) == (len(x), 20)


def test_whole_clusters_are_left_out() -> None:
    """Variance sum (1 - h) (influence)^2 with influences from dropping each cluster's rows by hand."""
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(12), 4)
    x = rng.integers(1, 30, (48, 2)).astype(float)
    whole = ratio(x.sum(axis=0)[None])[0]
    left = np.array([ratio(x[labels != g].sum(axis=0)[None])[0] for g in range(12)])
    influence = (whole - left) - (whole - left).mean()
    assert corpus_interval(x, ratio, 0.95, labels).sd ** 2 / 48 == pytest.approx(
        11 / 12 * (influence**2).sum()
    )


POPULATIONS: dict[tuple[str, Noise, Noise], Population] = {}


def people(metric: str, a: Noise, b: Noise) -> Population:
    if (metric, a, b) not in POPULATIONS:
        POPULATIONS[metric, a, b] = population(metric, 2000, a, b, seed=31)
    return POPULATIONS[metric, a, b]


@pytest.mark.stats
@pytest.mark.parametrize(
    ("metric", "noise", "n", "decided"),
    [
        ("bleu", ROUGH, 32, 0.3),
        ("bleu", ROUGH, 128, 0.8),
        ("bleu", FAR, 64, 0.05),
        ("bleu", FAR, 128, 0.2),
        ("chrf", ROUGH, 32, 0.8),
    ],
    ids=["bleu 32", "bleu 128", "bleu near 0, 64", "bleu near 0, 128", "chrf 32"],
)
def test_equal_systems_differ_no_more_often_than_the_level_says(
    rng: np.random.Generator, metric: str, noise: Noise, n: int, decided: float
) -> None:
    found = people(metric, noise, noise)
    tally(lambda: paired_corpus(*found.sample_null(rng, n), found.score, 0.95), 0.0).assert_holds(
        decided=decided
    )


@pytest.mark.stats
@pytest.mark.parametrize(
    ("metric", "baseline", "n"),
    [("bleu", ROUGH, 64), ("bleu", SHORT, 128), ("chrf", SHORT, 64)],
    ids=["worse", "shorter", "chrf"],
)
def test_bounds_hold_a_true_difference(
    rng: np.random.Generator, metric: str, baseline: Noise, n: int
) -> None:
    """At the margin, where a non-inferiority gate errs: systems that differ in variance and length too."""
    found = people(metric, baseline, CLOSE)
    assert abs(found.difference) > 3
    tally(lambda: paired_corpus(*found.sample(rng, n), found.score, 0.95), found.difference).assert_holds(
        decided=0.5
    )


@pytest.mark.stats
def test_one_systems_corpus_interval_holds_its_value(rng: np.random.Generator) -> None:
    found = people("bleu", ROUGH, ROUGH)
    truth = float(found.score(found.a.sum(axis=0)[None])[0])
    tally(lambda: corpus_interval(found.sample(rng, 100)[0], found.score, 0.95), truth).assert_holds(
        decided=0.25
    )


@pytest.mark.stats
def test_clusters_of_like_cases_keep_the_level_of_a_corpus_metric(rng: np.random.Generator) -> None:
    """30 clusters of 1 to 7 cases; a cluster's cases are of like difficulty and lean to one system together."""
    found = people("chrf", ROUGH, ROUGH)
    order = np.argsort(found.a[:, 3] / np.maximum(found.a[:, 1], 1))
    sizes = np.tile(np.array([1, 2, 3, 4, 5, 7]), 5)
    labels = np.repeat(np.arange(30), sizes)

    def one():  # type: ignore[no-untyped-def]
        place = np.repeat(rng.integers(0, len(order), 30), sizes) + rng.integers(-50, 51, len(labels))
        rows = order[place % len(order)]
        swapped = np.repeat(rng.random(30) < 0.5, sizes)[:, None]
        a, b = found.a[rows], found.b[rows]
        better = np.where(a[:, 3:4] > b[:, 3:4], a, b), np.where(a[:, 3:4] > b[:, 3:4], b, a)
        return paired_corpus(
            np.where(swapped, better[0], better[1]),
            np.where(swapped, better[1], better[0]),
            found.score, 0.95, labels,
        )  # fmt: skip

    tally(one, 0.0).assert_holds(decided=0.3)


def percentile_bounds(
    found: Population, sample: tuple[FloatArray, FloatArray], rng: np.random.Generator
) -> tuple[float, float]:
    n = len(sample[0])
    weights = rng.multinomial(n, np.full(n, 1 / n), size=400).astype(float)
    low, high = np.quantile(
        found.score(weights @ sample[1]) - found.score(weights @ sample[0]), [NOMINAL, 1 - NOMINAL]
    )
    return float(low), float(high)


class PrecomputedBLEU(BLEU):
    """sacrebleu's BLEU over statistics in place of texts, so that its own test can run a thousand times."""

    def _extract_corpus_statistics(self, hypotheses: Any, references: Any) -> Any:
        return hypotheses


def sacrebleu_p_value(a: FloatArray, b: FloatArray, seed: int) -> float:
    metric = PrecomputedBLEU()
    rows_a, rows_b = a.astype(int).tolist(), b.astype(int).tolist()
    known = {"bleu": (rows_a, Result(metric._aggregate_and_compute(rows_a).score))}
    _, results = _paired_bs_test(known, "b", rows_b, None, {"bleu": metric}, n_samples=300, seed=seed)
    return float(results["bleu"].p_value)


@pytest.mark.stats
def test_rule_condemns_sacrebleus_paired_bootstrap_and_the_percentile_bootstrap(
    rng: np.random.Generator,
) -> None:
    """No level of ours: 600 times condemn what errs twice as often as it says (sacrebleu's test takes 10 ms)."""
    rough, far = people("bleu", ROUGH, ROUGH), people("bleu", FAR, FAR)
    theirs = [sacrebleu_p_value(*rough.sample_null(rng, 128), seed=i) < NOMINAL for i in range(600)]
    with pytest.raises(AssertionError, match="wrong in"):
        assert_holds(sum(theirs), len(theirs))
    bounds = [percentile_bounds(far, far.sample_null(rng, 128), rng) for _ in range(600)]
    outside = [low > 0 or high < 0 for low, high in bounds]
    with pytest.raises(AssertionError, match="wrong in"):
        assert_holds(sum(outside), len(outside), 2 * NOMINAL)
