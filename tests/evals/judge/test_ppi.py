"""The calibrated win rate: people's alone where the judge is no help, narrower where it is, at its level in both."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from scipy import stats as scipy_stats

from llmops import stats
from llmops.errors import InvalidEvidence
from llmops.evals.judge.ppi import calibrated_win_rate, from_counts

NOMINAL = 0.05
SCORES = np.array([0.0, 0.5, 1.0])


def people_alone(scores: list[float]) -> stats.Interval:
    losses, wins = ([score == which for score in scores] for which in (0.0, 1.0))
    return stats.paired_binary(losses, wins, 0.95).scaled(50)


def joint(people: tuple[float, float, float], right: float, favours: float = 0.0) -> np.ndarray:
    """[3, 3] law of what people and a judge say, which is right so often and else draws, leaning to the candidate."""
    drawn = np.array([1 - favours, 1.0, 1 + favours]) / 3
    return np.diag(people) * right + np.outer(people, drawn) * (1 - right)


def test_without_other_cases_it_is_peoples_interval() -> None:
    rated = [(1.0, 1.0)] * 20 + [(0.0, 0.0)] * 12 + [(0.5, 1.0)] * 8
    found, alone = calibrated_win_rate(rated, [], 0.95), people_alone([y for y, _ in rated])
    assert (found.interval.low, found.interval.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    assert (found.weight, found.n_worth, found.interval.estimate) == (0.0, 40, pytest.approx(10.0))


@pytest.mark.parametrize("said", ["always the candidate", "the opposite of people"])
def test_judge_that_is_no_help_leaves_peoples_interval_alone(said: str) -> None:
    people = [1.0] * 20 + [0.0] * 12 + [0.5] * 8
    rated = [(y, 1.0 if said == "always the candidate" else 1 - y) for y in people]
    found, alone = calibrated_win_rate(rated, [1.0, 0.0] * 200, 0.95), people_alone(people)
    assert (found.weight, found.interval.low) == (0.0, pytest.approx(alone.low))


def test_judge_that_always_agrees_makes_few_votes_worth_many() -> None:
    rated = [(1.0, 1.0)] * 45 + [(0.0, 0.0)] * 35 + [(0.5, 0.5)] * 20
    others = [1.0] * 450 + [0.0] * 350 + [0.5] * 200
    found, alone = calibrated_win_rate(rated, others, 0.95), people_alone([y for y, _ in rated])
    assert found.n_worth > 300
    assert found.interval.high - found.interval.low < 0.6 * (alone.high - alone.low)
    assert found.interval.estimate == pytest.approx(5.0, abs=0.1)


def test_bias_of_the_judge_cancels() -> None:
    """People say 50 %; a judge that turns every third loss into a win says 60 % everywhere."""
    rated = [(1.0, 1.0)] * 50 + [(0.0, 1.0)] * 10 + [(0.0, 0.0)] * 40
    found = calibrated_win_rate(rated, [1.0] * 600 + [0.0] * 400, 0.95)
    assert found.weight > 0.5
    assert found.interval.estimate == pytest.approx(0.0, abs=0.2)


def test_estimate_is_that_of_the_papers_formula_with_each_weight_left_one_out() -> None:
    rng = np.random.default_rng(5)
    cells = rng.choice(9, 60, p=joint((0.3, 0.2, 0.5), 0.7, 0.5).ravel())
    y, f = SCORES[cells // 3], SCORES[cells % 3]
    others = rng.choice(SCORES, 200, p=[0.3, 0.2, 0.5])
    moved = []
    for i in range(60):
        own, its = np.delete(y, i), np.delete(f, i)
        pooled = np.concatenate([its, others])
        weight = np.cov(own, its, ddof=0)[0, 1] / pooled.var() / (1 + len(own) / len(others))
        moved.append(y[i] - weight * (f[i] - others.mean()))
    found = calibrated_win_rate(list(zip(y, f, strict=True)), list(others), 0.95)
    assert found.interval.estimate == pytest.approx(100 * np.mean(moved) - 50)


def test_two_rated_cases_are_too_few() -> None:
    with pytest.raises(InvalidEvidence, match="fewer than 3"):
        calibrated_win_rate([(1.0, 1.0), (0.0, 0.0)], [1.0], 0.95)


def test_interval_is_no_wider_than_peoples_alone_beyond_noise() -> None:
    rng = np.random.default_rng(11)
    for right in (0.0, 0.3, 0.6, 0.9):
        law, widths, alone = joint((0.35, 0.25, 0.4), right, 0.6), [], []
        for _ in range(60):
            table = rng.multinomial(50, law.ravel()).reshape(3, 3).astype(float)
            free = rng.multinomial(300, law.sum(axis=0)).astype(float)
            found = from_counts(table, free, 0.95).interval
            widths.append(found.high - found.low)
            hers = from_counts(table, np.zeros(3), 0.95).interval
            alone.append(hers.high - hers.low)
        assert np.max(np.array(widths) / np.array(alone)) < 1.05
        assert np.mean(widths) <= np.mean(alone)


@pytest.mark.stats
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
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    rng = np.random.default_rng(zlib.crc32(request.node.name.encode()))
    law, truth = joint(people, right, favours), 50 * (people[2] - people[0])
    tables = rng.multinomial(n, law.ravel(), size=10_000).reshape(-1, 3, 3).astype(float)
    frees = rng.multinomial(n_free, law.sum(axis=0), size=10_000).astype(float)
    found = [from_counts(table, free, 0.95).interval for table, free in zip(tables, frees, strict=True)]
    for wrong in (sum(i.low > truth for i in found), sum(i.high < truth for i in found)):
        measured = scipy_stats.binomtest(wrong, 10_000).proportion_ci(0.98, method="exact")
        assert measured.low <= NOMINAL, f"{wrong} of 10,000 wrong"


@pytest.mark.stats
def test_the_yardstick_condemns_a_judge_that_is_believed_without_people(
    request: pytest.FixtureRequest,
) -> None:
    """Why an uncalibrated judge blocks nothing: one that leans a little to the candidate passes it most of the time."""
    rng = np.random.default_rng(zlib.crc32(request.node.name.encode()))
    law = joint((0.35, 0.3, 0.35), 0.8, 0.6).sum(axis=0)
    draws = rng.multinomial(1000, law, size=200)
    passed = 0
    for losses, ties, wins in draws:
        del ties
        passed += stats.paired_binary([0] * wins + [1] * losses, [1] * wins + [0] * losses, 0.95).low > 0
    assert scipy_stats.binomtest(passed, 200).proportion_ci(0.98, method="exact").low > 0.3
