"""Comparing two systems by a judge, through the command line: what it says becomes figures, and its habits show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scipy import stats as scipy_stats

from llmops import stats
from llmops.evals.judge.kept import load_judgements
from llmops.records import Figure, JudgementSet
from tests.evals.counterpart import Fault
from tests.evals.judge.conftest import N_LOSSES, N_SAME, N_TIES, N_WINS, Court
from tests.evals.judge.referee import Seen, perfect, verdict

N_PAIRS = N_WINS + N_LOSSES + N_TIES


def figures(record: JudgementSet) -> dict[str, Figure]:
    return {figure.name: figure for figure in record.figures}


def test_perfect_judge_finds_who_is_right_and_ties_count_half(court: Court) -> None:
    record = court.judged(court.judge(court.seat(perfect)))
    found = figures(record)
    losses = [0] * N_WINS + [1] * N_LOSSES + [0] * N_TIES
    wins = [1] * N_WINS + [0] * (N_LOSSES + N_TIES)
    bounds = stats.paired_binary(losses, wins, 0.95)
    assert (record.n_judged, record.n_errored, record.n_same, record.n_cases) == (
        N_PAIRS,
        0,
        N_SAME,
        N_PAIRS + N_SAME,
    )
    assert found["win_rate"].value == pytest.approx(100 * (N_WINS + N_TIES / 2) / N_PAIRS)
    assert found["win_rate"].low == pytest.approx(50 + 50 * bounds.low)
    assert found["win_rate"].high == pytest.approx(50 + 50 * bounds.high)
    assert (found["flip_rate"].value, found["first_place"].value) == (0.0, 50.0)


def test_judge_that_always_takes_the_first_place_ties_every_case_and_flips_every_time(court: Court) -> None:
    record = court.judged(court.judge(court.seat(lambda shown, nth: verdict("A"))))
    found = figures(record)
    assert (found["win_rate"].value, found["win_rate"].n) == (50.0, N_PAIRS)
    assert (found["flip_rate"].value, found["first_place"].value) == (100.0, 100.0)
    assert found["flip_rate"].low == pytest.approx(
        100 * 0.05 ** (1 / N_PAIRS)
    )  # all of n: Clopper and Pearson
    assert "length_correlation" not in found  # all ties: nothing varies with length


def test_judge_that_takes_the_longer_answer_shows_it(court: Court) -> None:
    def longer(shown: Seen, nth: int) -> str:
        a, b = map(len, shown.answers)
        return verdict("tie" if a == b else "A" if a > b else "B")

    found = figures(court.judged(court.judge(court.seat(longer))))
    assert found["longer_wins"].value == 100.0
    assert found["length_correlation"].value > 0.7
    honest = figures(court.judged(court.judge(court.seat(perfect))))
    assert honest["longer_wins"].value == 0.0  # here the wrong answers are the longer ones


def test_every_pair_is_shown_in_both_orders_with_explicit_decoding(court: Court) -> None:
    referee = court.seat(perfect)
    court.judged(court.judge(referee))
    shown = {(body["messages"][0]["content"]) for body in referee.bodies}
    assert len(referee.bodies) == len(shown) == 2 * N_PAIRS
    body = referee.bodies[0]
    assert (body["temperature"], body["max_tokens"], body["seed"], body["model"]) == (0, 64, 7, "judge")
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["verdict"]["enum"] == ["A", "B", "tie"]


def test_set_is_stored_with_its_digests_and_told_to_the_ledger(court: Court) -> None:
    record = court.judged(court.judge(court.seat(perfect)))
    (event,) = court.room.registry.ledger.events("judged")
    stored = court.room.registry.store.get_record(JudgementSet, str(event.body["judgements"]))
    base, adapter = court.reports
    assert stored == record
    assert record.reports == (adapter.digest(), base.digest())
    assert (record.model, record.answered_by, record.fingerprints) == (
        "judge",
        ("judge-large-2026",),
        ("fp_1",),
    )
    said = load_judgements(court.room.registry.store, record.judgements)
    assert len(said) == 2 * N_PAIRS
    assert {judgement.shown for judgement in said} == {
        (adapter.system, base.system),
        (base.system, adapter.system),
    }


def test_table_says_what_was_found_and_that_the_judge_decides_nothing(court: Court) -> None:
    done = court.run(court.judge(court.seat(perfect)))
    assert done.code == 0
    assert "win rate" in done.out
    assert "64.6 % [" in done.out
    assert "this judge can inform a gate, and decide nothing" in done.out


def test_garbage_is_errored_and_never_a_score(court: Court) -> None:
    def sometimes(shown: Seen, nth: int) -> str:
        return "I would rather not say." if "question 7" in shown.request else perfect(shown, nth)

    file = court.judge(court.seat(sometimes), max_errored_frac=0.5)
    record = court.judged(file)
    assert record.n_errored > 0
    assert record.n_judged == N_PAIRS - record.n_errored == figures(record)["win_rate"].n
    errored = [
        j for j in load_judgements(court.room.registry.store, record.judgements) if j.status == "errored"
    ]
    assert {judgement.verdict for judgement in errored} == {None}
    assert "unparsable" in str(errored[0].error)


def test_set_of_which_most_errored_is_no_evidence_and_exits_4(court: Court) -> None:
    record = court.judged(court.judge(court.seat(lambda shown, nth: "no idea")), code=4)
    assert (record.n_judged, record.n_errored, record.figures) == (0, N_PAIRS, ())
    assert f"{N_PAIRS} of {N_PAIRS} cases got no judgement" in record.invalid[0]


def test_errored_judgements_are_asked_again_and_the_others_are_not(court: Court) -> None:
    referee = court.seat(lambda shown, nth: "hm" if nth <= 10 else perfect(shown, nth))
    file = court.judge(referee, max_errored_frac=0.5)
    assert court.judged(file).n_errored > 0
    assert court.judged(file).n_errored == 0
    assert len(referee.bodies) == 2 * N_PAIRS + 10


def test_judge_that_goes_away_exits_5_keeps_what_it_said_and_goes_on_from_there(court: Court) -> None:
    def dies(shown: Seen, nth: int) -> str | Fault:
        return perfect(shown, nth) if nth <= 30 else Fault(status=503)

    referee = court.seat(dies)
    file = court.judge(referee, endpoint={"retry_s": 0.3, "concurrency": 4})
    done = court.run(file)
    assert done.code == 5
    assert "does not answer (HTTP 503" in done.err
    assert "judgements are kept" in done.err
    assert court.room.registry.ledger.events("judged") == []
    (kept,) = (court.room.workspace.runs / court.reports[0].session).glob("judgements-*.jsonl")
    first = kept.read_bytes().splitlines()
    assert 30 - 4 <= len(first) <= 30  # what is under way when the first gives up may be lost
    referee.script = perfect
    assert court.judged(file).n_judged == N_PAIRS
    lines = kept.read_bytes().splitlines()
    assert (lines[: len(first)], len(lines)) == (first, 2 * N_PAIRS)  # nothing is judged twice


def test_server_that_was_never_there_exits_5(court: Court) -> None:
    referee = court.seat(perfect)
    file = court.judge(referee, endpoint={"url": "http://127.0.0.1:9/v1", "retry_s": 0})
    done = court.run(file)
    assert (done.code, "connection failed" in done.err) == (5, True)


def test_endpoint_without_schemas_is_asked_in_plain_text_and_read_tolerantly(court: Court) -> None:
    def marked(shown: Seen, nth: int) -> str:
        return f"Well. [[{json.loads(perfect(shown, nth))['verdict']}]]"

    referee = court.seat(marked, has_schema=False)
    record = court.judged(court.judge(referee))
    assert figures(record)["win_rate"].value == pytest.approx(100 * (N_WINS + N_TIES / 2) / N_PAIRS)
    said = load_judgements(court.room.registry.store, record.judgements)
    assert {judgement.format for judgement in said} == {"text"}
    assert all("response_format" not in body for body in referee.bodies)


@pytest.mark.parametrize(
    "settings", [{"message": {"refusal": "I cannot judge people."}}, {"finish_reason": "content_filter"}]
)
def test_refusal_is_errored_whatever_its_text_says(court: Court, settings: dict[str, Any]) -> None:
    record = court.judged(court.judge(court.seat(perfect, **settings)), code=4)
    assert (record.n_judged, record.n_errored) == (0, N_PAIRS)


def test_key_is_sent_from_the_variable_that_the_file_names(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    referee = court.seat(perfect)
    file = court.judge(referee, endpoint={"api_key_env": "JUDGE_KEY"})
    done = court.run(file)
    assert (done.code, "JUDGE_KEY (api_key_env) is not set" in done.err) == (2, True)
    monkeypatch.setenv("JUDGE_KEY", "secret-7")
    record = court.judged(file)
    assert set(referee.keys) == {"Bearer secret-7"}
    assert "secret-7" not in json.dumps(record.to_dict())


def test_judge_that_is_a_system_under_test_is_refused_by_its_name(court: Court) -> None:
    referee = court.seat(perfect)
    for name in (court.reports[1].system, court.reports[0].model):
        done = court.run(court.judge(referee, endpoint={"model": name}))
        assert (done.code, "would favour itself" in done.err) == (2, True)
    assert referee.bodies == []


def test_judge_that_is_a_system_under_test_is_refused_by_the_digest_that_answers(court: Court) -> None:
    referee = court.seat(perfect, headers={"x-llmops-model": court.reports[1].model})
    done = court.run(court.judge(referee))
    assert (done.code, "would favour itself" in done.err) == (2, True)
    assert court.room.registry.ledger.events("judged") == []


def test_answers_altered_in_the_store_are_not_judged(court: Court) -> None:
    folder = court.room.registry.store.path("completions", court.reports[1].completions)
    path = folder / "completions.jsonl"
    path.write_bytes(path.read_bytes().replace(b"answer", b"Answer", 1))
    done = court.run(court.judge(court.seat(perfect)))
    assert (done.code, "changed" in done.err) == (4, True)


def test_session_of_three_systems_needs_a_baseline(court: Court) -> None:
    court.room.new_adapter("docs", 2)
    adapters = [record.model_name for record in court.room.registry.adapters()]
    counterpart = court.room.serve(lambda model, prompt, nth: f"{prompt}, says {model}")
    suite = court.room.suite(
        cases={"kind": "dataset", "name": "questions", "pool": "gate", "n_max": 8, "seed": 0}
    )
    reports = court.room.run(counterpart, suite, adapters=tuple(adapters))
    file = court.judge(court.seat(lambda shown, nth: verdict("tie")))
    done = court.run(file)
    assert (done.code, "say --baseline" in done.err) == (2, True)
    record = court.judged(file, "--baseline", adapters[0])
    assert record.systems == (adapters[1], adapters[0])
    assert record.session == reports[0].session


def test_first_place_interval_is_that_of_coins_also_where_nothing_varies() -> None:
    from llmops.evals.judge.pairwise import share_interval

    found = share_interval([1.0] * 20, 0.95)
    exact = scipy_stats.binomtest(20, 20).proportion_ci(0.9, method="exact")
    assert (found.low, found.high) == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_length_correlation_is_spearmans() -> None:
    from llmops.evals.judge.pairwise import length_correlation

    outcomes, by = ["first", "second", "tie", "first", "second", "first"], [3, -4, 1, 9, 2, -5]
    found = length_correlation(outcomes, by, 0.95)
    expected = scipy_stats.spearmanr([1, 0, 0.5, 1, 0, 1], by).statistic
    assert found is not None
    assert found.estimate == pytest.approx(expected)
    assert found.low < expected < found.high
