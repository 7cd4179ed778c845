"""Scoring answers one by one, through the command line: means, passes, paired differences, and consistency."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from llmops import stats
from llmops.records import Figure, JudgementSet
from tests.evals.judge.conftest import N_LOSSES, N_SAME, N_TIES, N_WINS, Court
from tests.evals.judge.referee import Seen

N_CASES = N_WINS + N_LOSSES + N_TIES + N_SAME
QUESTIONS = [
    {"id": "correct", "text": "Is it right?", "scale": [1, 5], "pass_mark": 4},
    {"id": "brief", "text": "Is it brief?", "scale": [0, 1]},
]


def scores(shown: Seen, nth: int) -> str:
    """5 for the reference, 2 for anything else; always brief."""
    right = shown.answers[0] == shown.request.replace("question", "answer")
    return json.dumps({"reason": "so", "scores": {"correct": 5 if right else 2, "brief": 1}})


def figures(record: JudgementSet) -> dict[tuple[str, str | None], Figure]:
    return {(figure.name, figure.system): figure for figure in record.figures}


def rubric(**settings: Any) -> dict[str, Any]:
    return {"kind": "rubric", "questions": QUESTIONS, **settings}


def test_each_system_has_a_mean_a_share_of_passes_and_a_paired_difference(court: Court) -> None:
    base, adapter = court.reports
    record = court.judged(court.judge(court.seat(scores), **rubric()))
    ours = [5.0] * N_WINS + [2.0] * (N_LOSSES + N_TIES) + [5.0] * N_SAME
    theirs = [2.0] * N_WINS + [5.0] * N_LOSSES + [2.0] * N_TIES + [5.0] * N_SAME
    found, difference = figures(record), stats.paired_t(theirs, ours, 0.95)
    assert record.systems == (adapter.system, base.system)
    assert found["correct", adapter.system].value == pytest.approx(np.mean(ours))
    assert found["correct", base.system].value == pytest.approx(np.mean(theirs))
    assert found["correct passes", adapter.system].value == pytest.approx(100 * (N_WINS + N_SAME) / N_CASES)
    assert found["correct difference", None].value == pytest.approx(difference.estimate)
    assert (found["correct difference", None].low, found["correct difference", None].high) == (
        pytest.approx(difference.low),
        pytest.approx(difference.high),
    )
    assert found["brief", base.system].value == 1.0
    assert ("brief passes", base.system) not in found


def test_repeats_are_sampled_with_their_own_seeds_and_show_how_consistent_the_judge_is(court: Court) -> None:
    def wavers(shown: Seen, nth: int) -> str:
        correct = 3 + seeds[nth - 1] % 2 if "question 1" in shown.request else 3
        return json.dumps({"scores": {"correct": correct, "brief": 0}})

    referee = court.seat(wavers)
    seeds = _Seeds(referee.bodies)
    record = court.judged(court.judge(referee, **rubric(repeats=2)))
    found = figures(record)
    assert {body["seed"] for body in referee.bodies} == {7, 8}
    assert len(referee.bodies) == 2 * 2 * N_CASES
    requests = {body["messages"][0]["content"].split("\n>>>")[0].split("\n")[-1] for body in referee.bodies}
    n_wavering = sum("question 1" in request for request in requests)
    assert 0 < n_wavering < N_CASES
    assert found["correct same each time", None].value == pytest.approx(100 * (1 - n_wavering / N_CASES))
    assert found["brief same each time", None].value == 100.0


class _Seeds:
    """The seed of the nth request."""

    def __init__(self, bodies: list[dict[str, Any]]) -> None:
        self._bodies = bodies

    def __getitem__(self, n: int) -> int:
        seed: int = self._bodies[n]["seed"]
        return seed


def test_score_off_the_scale_is_errored_for_the_whole_case(court: Court) -> None:
    def sometimes(shown: Seen, nth: int) -> str:
        high = "question 1" in shown.request and "no idea" in shown.answers[0]
        return json.dumps({"scores": {"correct": 9, "brief": 0}}) if high else scores(shown, nth)

    record = court.judged(court.judge(court.seat(sometimes), **rubric(max_errored_frac=0.9)))
    assert 0 < record.n_errored < N_CASES
    assert figures(record)["correct difference", None].n == record.n_judged == N_CASES - record.n_errored


def test_rubric_cannot_be_held_against_a_campaign(court: Court) -> None:
    done = court.run(court.judge(court.seat(scores), **rubric()), "--campaign", "any")
    assert (done.code, "use kind pairwise" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"scale": [5, 1]}, "give the lowest score first"),
        ({"scale": [1, 5], "pass_mark": 1}, "passes all or none"),
    ],
)
def test_scale_or_mark_that_says_nothing_is_refused(
    court: Court, question: dict[str, Any], said: str
) -> None:
    asked = [{"id": "q", "text": "Good?", **question}]
    done = court.run(court.judge(court.seat(scores), kind="rubric", questions=asked))
    assert (done.code, said in done.err) == (2, True)


def test_question_that_stands_there_twice_is_refused(court: Court) -> None:
    done = court.run(court.judge(court.seat(scores), **rubric(questions=[QUESTIONS[0]] * 2)))
    assert (done.code, "correct stands there twice" in done.err) == (2, True)
