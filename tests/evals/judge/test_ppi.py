"""The calibrated win rate: people's alone where the judge is no help, narrower where it is, at its level in both."""

from __future__ import annotations

import numpy as np
import pytest

from llmops import stats
from llmops.errors import InvalidEvidence
from llmops.evals.judge.ppi import Calibrated, Others, Rated, calibrated_win_rate
from llmops.stats import FloatArray

SCORES = np.array([0.0, 0.5, 1.0])


def from_pairs(rated: list[tuple[float, float]], others: list[float]) -> Calibrated:
    """From what people and the judge say of each rated case, and the judge of the others."""
    people, judge = np.array(rated).T
    return calibrated_win_rate(Rated(people, judge), Others(others), 0.95)


def from_counts(table: FloatArray, free: FloatArray) -> Calibrated:
    """From [3, 3] rated cases by what people (rows) and the judge say, and [3] others."""
    cells = np.repeat(np.arange(9), table.ravel().astype(int))
    rated = Rated(SCORES[cells // 3], SCORES[cells % 3])
    return calibrated_win_rate(rated, Others(np.repeat(SCORES, free.astype(int))), 0.95)


def people_alone(scores: list[float]) -> stats.Interval:
    losses, wins = ([score == which for score in scores] for which in (0.0, 1.0))
    return stats.paired_binary(losses, wins, 0.95).scaled(50)


def joint(people: tuple[float, float, float], right: float, favours: float = 0.0) -> np.ndarray:
    """[3, 3] law of what people and a judge say, which is right so often and else draws, leaning to the candidate."""
    drawn = np.array([1 - favours, 1.0, 1 + favours]) / 3
    return np.diag(people) * right + np.outer(people, drawn) * (1 - right)


def test_without_other_cases_it_is_peoples_interval() -> None:
    rated = [(1.0, 1.0)] * 20 + [(0.0, 0.0)] * 12 + [(0.5, 1.0)] * 8
    found, alone = from_pairs(rated, []), people_alone([y for y, _ in rated])
    assert (found.interval.low, found.interval.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    assert (found.weight, found.n_worth, found.interval.estimate) == (0.0, 40, pytest.approx(10.0))


@pytest.mark.parametrize("said", ["always the candidate", "the opposite of people"])
def test_judge_that_is_no_help_leaves_peoples_interval_alone(said: str) -> None:
    people = [1.0] * 20 + [0.0] * 12 + [0.5] * 8
    rated = [(y, 1.0 if said == "always the candidate" else 1 - y) for y in people]
    found, alone = from_pairs(rated, [1.0, 0.0] * 200), people_alone(people)
    assert (found.weight, found.interval.low) == (0.0, pytest.approx(alone.low))


def test_judge_that_always_agrees_makes_few_votes_worth_many() -> None:
    rated = [(1.0, 1.0)] * 45 + [(0.0, 0.0)] * 35 + [(0.5, 0.5)] * 20
    others = [1.0] * 450 + [0.0] * 350 + [0.5] * 200
    found, alone = from_pairs(rated, others), people_alone([y for y, _ in rated])
    assert found.n_worth > 300
    assert found.interval.high - found.interval.low < 0.6 * (alone.high - alone.low)
    assert found.interval.estimate == pytest.approx(5.0, abs=0.1)


def test_bias_of_the_judge_cancels() -> None:
    """People say 50 %; a judge that turns every third loss into a win says 60 % everywhere."""
    rated = [(1.0, 1.0)] * 50 + [(0.0, 1.0)] * 10 + [(0.0, 0.0)] * 40
    found = from_pairs(rated, [1.0] * 600 + [0.0] * 400)
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
    found = from_pairs(list(zip(y, f, strict=True)), list(others))
    assert found.interval.estimate == pytest.approx(100 * np.mean(moved) - 50)


def test_two_rated_cases_are_too_few() -> None:
    with pytest.raises(InvalidEvidence, match="fewer than 3"):
        from_pairs([(1.0, 1.0), (0.0, 0.0)], [1.0])


def test_interval_is_no_wider_than_peoples_alone_beyond_noise() -> None:
    rng = np.random.default_rng(11)
    for right in (0.0, 0.3, 0.6, 0.9):
        law, widths, alone = joint((0.35, 0.25, 0.4), right, 0.6), [], []
        for _ in range(60):
            table = rng.multinomial(50, law.ravel()).reshape(3, 3).astype(float)
            free = rng.multinomial(300, law.sum(axis=0)).astype(float)
            found = from_counts(table, free).interval
            widths.append(found.high - found.low)
            hers = from_counts(table, np.zeros(3)).interval
            alone.append(hers.high - hers.low)
        assert np.max(np.array(widths) / np.array(alone)) < 1.05
        assert np.mean(widths) <= np.mean(alone)


def test_cases_of_a_cluster_that_are_one_case_are_worth_one_case() -> None:
    """Twice the same 40 cases, in pairs: the interval is that of 40, a little wider for the estimated spread."""
    rng = np.random.default_rng(8)
    cells = rng.choice(9, 40, p=joint((0.35, 0.3, 0.35), 0.7).ravel())
    y, f, others = SCORES[cells // 3], SCORES[cells % 3], rng.choice(SCORES, 200)
    once = calibrated_win_rate(Rated(y, f), Others(others), 0.95)
    rated = Rated(np.repeat(y, 2), np.repeat(f, 2), clusters=np.repeat(np.arange(40), 2))
    free = Others(np.repeat(others, 2), np.repeat(np.arange(40, 240), 2))
    twice = calibrated_win_rate(rated, free, 0.95)
    unaware = calibrated_win_rate(Rated(rated.votes, rated.judge), Others(free.judge), 0.95)
    assert twice.n_worth == pytest.approx(once.n_worth, rel=0.1)
    assert unaware.n_worth > 1.6 * twice.n_worth
    assert twice.interval.n_clusters == 40


def test_case_that_no_judge_was_asked_beyond_is_peoples_clustered_interval() -> None:
    votes = np.random.default_rng(4).choice(SCORES, 90)
    clusters, raters = np.arange(90) // 3, np.arange(90) % 5
    found = calibrated_win_rate(Rated(votes, votes, raters=raters, clusters=clusters), Others([]), 0.95)
    alone = stats.win_rate(votes, 0.95, clusters, raters).shifted(-0.5).scaled(100)
    assert (found.interval.low, found.interval.high) == pytest.approx((alone.low, alone.high))


def test_rater_who_likes_one_system_is_one_opinion_to_the_calibrated_rate_too() -> None:
    """Four people of one mind about everything, two for each system: the judge cannot know whom else to ask."""
    raters = np.arange(80) % 4
    votes = np.where(raters < 2, 1.0, 0.0)
    judge = np.tile([1.0, 0.0], 40)
    others = Others([1.0, 0.0] * 200)
    alone = calibrated_win_rate(Rated(votes, judge), others, 0.95).interval
    found = calibrated_win_rate(Rated(votes, judge, raters=raters), others, 0.95).interval
    assert alone.low > -15
    assert found.low < -40


def test_few_clusters_leave_the_calibrated_rate_in_doubt() -> None:
    votes = np.random.default_rng(4).choice(SCORES, 60)
    rated = Rated(votes, votes, clusters=np.arange(60) % 5)
    assert "5 independent units are too few" in str(
        calibrated_win_rate(rated, Others([0.5] * 9, [f"g{i}" for i in range(9)]), 0.95).interval.doubt
    )
