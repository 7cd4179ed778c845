"""A judge in a gate, through the command line: it informs, or decides by people's votes, and never fails by absence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmops.errors import InvalidEvidence
from llmops.evals.gate import load_gate
from llmops.evals.judge.ppi import Others, Rated, calibrated_win_rate
from llmops.records import Decision, JudgementSet
from llmops.registry.release_checks import require_standing_votes
from llmops.schema import load_record, short
from tests.evals.conftest import write
from tests.evals.judge.conftest import Court
from tests.evals.judge.referee import Referee, Seen, perfect, verdict
from tests.evals.judge.test_calibrate import TRUTH, opened
from tests.evals.voting import NAME, vote
from tests.in_process import llmops

WINS: dict[str, Any] = {"kind": "superior", "by": 0}
ITEMS = {"min_items": 10}


def gate(court: Court, judge: Path, **rules: Any) -> Path:
    """A gate whose metric check passes whatever the judge says."""
    config = {
        "name": "g",
        "public_name": "docs",
        "suite": "suite.yaml",
        "min_cases": 2,
        "primary": {"metric": "exact_match", "kind": "non_inferior", "margin": 50},
        "judge": {"file": judge.name, "win_rate": WINS, **rules},
    }
    return write(court.root / "gate.yaml", config)


def decided(court: Court, path: Path) -> Decision:
    done = llmops(court.root, "gate", "check", str(path), "--json")
    assert done.code in (0, 1, 3, 4), done.err
    return load_record(Decision, json.loads(done.out))


def checks(decision: Decision) -> dict[str, Any]:
    return {check.metric: check for check in decision.checks}


def declared(court: Court, referee: Referee, **rules: Any) -> tuple[Path, Path]:
    """A judge and a gate that were there before the session's answers: the answers are asked again under them."""
    file = court.judge(referee)
    path = gate(court, file, **rules)
    court.again(path)
    return file, path


def contrary(shown: Seen, nth: int) -> str:
    """Prefers the answer that is wrong."""
    said = json.loads(perfect(shown, nth))["verdict"]
    return verdict({"A": "B", "B": "A"}.get(said, said))


def test_uncalibrated_judge_informs_and_blocks_nothing(court: Court) -> None:
    file, path = declared(court, court.seat(contrary))
    court.judged(file)
    decision = decided(court, path)
    assert (decision.verdict, set(checks(decision))) == ("PASS", {"exact_match"})
    assert "informs only: it is calibrated on nobody's votes" in decision.reasons[-1]
    assert "win rate 35.4 % [" in decision.reasons[-1]


def test_uncalibrated_judge_that_was_never_asked_blocks_nothing(court: Court) -> None:
    _, path = declared(court, court.seat(perfect))
    decision = decided(court, path)
    assert decision.verdict == "PASS"
    assert "could not check: no judgements of these two reports" in decision.reasons[-1]


def test_calibrated_judge_decides_by_the_calibrated_interval_and_the_reasons_carry_it(court: Court) -> None:
    file, path = declared(court, court.seat(perfect), calibrated_on=NAME, **ITEMS)
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    court.judged(file)
    decision = decided(court, path)
    score = {"first": 1.0, "tie": 0.5, "second": 0.0}
    people = [score[o] for o in truth]
    others = Others([score[o] for o in TRUTH[1::2]])
    expected = calibrated_win_rate(Rated(people, people), others, 0.95).interval
    check = checks(decision)["judge_win_rate"]
    assert (check.low, check.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert (check.role, check.n_cases, check.verdict) == ("judge", len(truth), decision.verdict)
    said = f"win rate {50 + expected.estimate:.1f} % [{50 + expected.low:.1f}, {50 + expected.high:.1f}]"
    assert said in decision.reasons[-1]
    assert f"calibrated on campaign {NAME}" in decision.reasons[-1]


def test_decision_names_the_judgements_and_the_votes_behind_it(court: Court) -> None:
    file, path = declared(court, court.seat(perfect), calibrated_on=NAME, **ITEMS)
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    record = court.judged(file)
    decision = decided(court, path)
    assert decision.judge is not None
    assert decision.judge.judgements == record.digest()
    assert decision.judge.ratings is not None
    assert decision.judge.ratings.campaign == campaign.digest()
    assert court.room.registry.store.has("votes", decision.judge.ratings.votes)


def test_people_overrule_a_judge_that_prefers_the_candidate(court: Court) -> None:
    """The judge says the candidate always wins; the votes, half of the cases, say it loses: FAIL, not PASS."""

    def flatters(shown: Seen, nth: int) -> str:
        ours = [court.reports[1].system in text or "answer" in text for text in shown.answers]
        return verdict("A" if ours[0] and not ours[1] else "B" if ours[1] and not ours[0] else "tie")

    file, path = declared(court, court.seat(flatters), calibrated_on=NAME, **ITEMS)
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", ["second"] * len(truth))
    court.judged(file)
    decision = decided(court, path)
    assert (decision.verdict, checks(decision)["judge_win_rate"].verdict) == ("FAIL", "FAIL")


def test_judge_that_was_down_could_not_check_which_is_invalid_and_never_fail(court: Court) -> None:
    referee = court.seat(perfect)
    file, path = declared(court, referee, calibrated_on=NAME, **ITEMS)
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", ["second"] * len(truth))
    referee.down = True
    assert court.run(file).code == 5
    decision = decided(court, path)
    assert (decision.verdict, checks(decision)["judge_win_rate"].verdict) == ("INVALID", "INVALID")
    assert "could not check" in decision.reasons[0]


def test_judge_that_mostly_errored_could_not_check(court: Court) -> None:
    file, path = declared(court, court.seat(lambda shown, nth: "hm"), calibrated_on=NAME, **ITEMS)
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    court.judged(file, code=4)
    decision = decided(court, path)
    assert decision.verdict == "INVALID"
    assert "could not check: 24 of 24 cases got no judgement" in decision.reasons[0]


def test_votes_that_are_not_all_in_leave_the_judge_undecided_and_unshown(court: Court) -> None:
    file, path = declared(court, court.seat(perfect), calibrated_on=NAME, **ITEMS)
    campaign, truth = opened(court)
    court.judged(file)
    vote(court.room, campaign, "ann", truth[:5])
    decision = decided(court, path)
    check = checks(decision)["judge_win_rate"]
    assert (decision.verdict, check.low, check.high) == ("INCONCLUSIVE", -50, 50)
    assert "lack the votes that calibrate it" in decision.reasons[0]


def test_fewer_rated_items_than_asked_for_decide_nothing(court: Court) -> None:
    file, path = declared(court, court.seat(perfect), calibrated_on=NAME)
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    court.judged(file)
    decision = decided(court, path)
    assert decision.verdict == "INCONCLUSIVE"
    assert "12 cases decide nothing; the gate asks for 40" in decision.reasons[0]


def test_judgement_that_was_altered_with_its_record_is_held_against_the_judges_own_words(
    court: Court,
) -> None:
    """A whole forged set, digests and all: the verdicts are read again from the texts."""
    from dataclasses import replace

    from llmops.evals.judge.kept import load_judgements, put_judgements

    file, path = declared(court, court.seat(perfect), calibrated_on=NAME, **ITEMS)
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    record = court.judged(file)
    registry = court.room.registry
    forged = [replace(j, verdict="tie") for j in load_judgements(registry.store, record.judgements)]
    other = replace(record, judgements=put_judgements(registry.store, forged))
    body = {"judgements": registry.store.put_record(other), "judge": "j", "judge_digest": other.judge_digest}
    registry.ledger.append("judged", {**body, "session": other.session})
    decision = decided(court, path)
    assert decision.verdict == "INVALID"
    assert "is not what the judge's own words say" in decision.reasons[0]


def test_judge_that_was_changed_after_the_run_decides_nothing(court: Court) -> None:
    referee = court.seat(perfect)
    file, path = declared(court, referee, calibrated_on=NAME, **ITEMS)
    court.judge(referee, question="Which is longer?")
    court.judged(file)
    decision = decided(court, path)
    assert decision.verdict == "INVALID"
    assert "was changed after the run" in decision.reasons[0]


def test_gates_digest_covers_what_the_judges_file_says(court: Court) -> None:
    referee = court.seat(perfect)
    path = gate(court, court.judge(referee))
    before = load_gate(path).digest
    court.judge(referee, question="Which is longer?")
    assert load_gate(path).digest != before
    write(path, {**json.loads(load_gate(path).model_dump_json()), "suites": {}})
    court.judge(referee)
    done = llmops(court.root, "gate", "check", str(path))
    assert (done.code, "the gate asks for" in done.err) == (2, True)


def test_rubric_judge_in_a_gate_is_refused(court: Court) -> None:
    questions = [{"id": "q", "text": "Good?", "scale": [1, 5]}]
    path = gate(court, court.judge(court.seat(perfect), kind="rubric", questions=questions))
    done = llmops(court.root, "gate", "check", str(path))
    assert (done.code, "a judge of kind pairwise" in done.err) == (2, True)


def test_set_of_judgements_survives_the_collection_of_refuse(court: Court) -> None:
    record = court.judged(court.judge(court.seat(perfect)))
    done = llmops(court.root, "gc", "--older-than", "0")
    assert done.code == 0, done.err
    store = court.room.registry.store
    assert store.get_record(JudgementSet, record.digest()) == record
    assert store.has("judgements", record.judgements)


def test_explanation_says_what_the_judge_found(court: Court) -> None:
    file, path = declared(court, court.seat(perfect))
    court.judged(file)
    decided(court, path)
    done = llmops(court.root, "gate", "explain", "latest")
    assert (done.code, "Judge says: j: win rate 64.6 % [" in done.out) == (0, True), done.err


def test_release_whose_judgements_were_altered_is_refused(court: Court) -> None:
    rule = {"win_rate": {"kind": "non_inferior", "margin": 30}}
    file, path = declared(court, court.seat(perfect), calibrated_on=NAME, **ITEMS, **rule)
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    record = court.judged(file)
    assert decided(court, path).verdict == "PASS"
    kept = court.room.registry.store.path("judgements", record.judgements) / "judgements.jsonl"
    kept.write_bytes(kept.read_bytes().replace(b'"A', b'"B', 1))
    done = llmops(court.root, "release", "promote", "docs", "--wait", "0")
    assert done.code == 4
    assert "judgements" in done.err
    assert "changed" in done.err


@pytest.mark.parametrize("looked", ["calibration", "decision"])
def test_judge_whose_votes_were_taken_back_after_their_result_was_seen_decides_nothing(
    court: Court, looked: str
) -> None:
    file, path = declared(court, court.seat(perfect), calibrated_on=NAME, **ITEMS)
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    if looked == "calibration":
        seen = court.calibrated(file, "--campaign", NAME).digest()
        what = f"calibration {short(seen)} of judge j"
    else:
        court.judged(file)
        seen = decided(court, path).digest()
        what = f"decision {short(seen)}"
    done = llmops(court.root, "feedback", "withdraw", "ann")
    assert f"flagged   {looked} {short(seen)}" in done.out, done.out + done.err
    decision = decided(court, path)
    assert (decision.verdict, checks(decision)["judge_win_rate"].verdict) == ("INVALID", "INVALID")
    n = len(truth)
    assert f"{n} of the {n} votes that {what} counted were taken back since" in decision.reasons[0]
    flagged = f"WITHDRAWN: rests on {n} ratings that were taken back"
    assert flagged in llmops(court.root, "status").out
    assert flagged in llmops(court.root, "lineage", f"{looked}:{short(seen)}").out.splitlines()[0]


def test_decision_whose_judges_votes_were_taken_back_is_not_acted_on(court: Court) -> None:
    file, path = declared(court, court.seat(perfect), calibrated_on=NAME, **ITEMS)
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    court.judged(file)
    decision, registry = decided(court, path), court.room.registry
    require_standing_votes(registry, decision, "docs")
    llmops(court.root, "feedback", "withdraw", "ann")
    n = len(truth)
    with pytest.raises(InvalidEvidence, match=f"{n} of {n} votes that calibrated the judge behind decision"):
        require_standing_votes(registry, decision, "docs")


def test_votes_taken_back_before_anybody_saw_them_are_simply_not_there(court: Court) -> None:
    file, path = declared(court, court.seat(perfect), calibrated_on=NAME, **ITEMS)
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    llmops(court.root, "feedback", "withdraw", "ann")
    court.judged(file)
    decision = decided(court, path)
    assert checks(decision)["judge_win_rate"].verdict == "INCONCLUSIVE"
    assert "lack the votes that calibrate it" in decision.reasons[0]


def test_plan_says_how_many_votes_and_judged_cases_the_judge_needs_by_its_pilots_correlation(
    court: Court,
) -> None:
    """More of either where the judge is worth less; the correlation is that of the pilot's table."""
    file, path = declared(
        court, court.seat(perfect), calibrated_on=NAME, win_rate={"kind": "non_inferior", "margin": 15}
    )

    def plan(*options: str) -> dict[str, dict[str, Any]]:
        done = llmops(court.root, "gate", "plan", str(path), "--json", *options)
        assert done.code == 0, done.err
        return {row["unit"]: row for row in json.loads(done.out) if row["check"] == "judge_win_rate"}

    (row,) = plan().values()
    assert set(row["needed"].values()) == {None}
    assert "needs a judge calibrated on a pilot's votes" in row["basis"]
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    court.calibrated(file, "--campaign", NAME)
    found = plan()
    assert "on 12 rated cases, equal systems, 30 % ties, 24 judged cases" in found["votes"]["basis"]
    assert found["votes"]["needed"]["0.8"] is None  # 24 cases are too few, however many are rated
    good, poor = plan("--correlation", "0.9"), plan("--correlation", "0.6")
    assert good["judged cases"]["needed"]["0.8"] < poor["judged cases"]["needed"]["0.8"]
    assert good["judged cases"]["basis"].startswith("judge's correlation 0.9, equal systems")
    table = llmops(court.root, "gate", "plan", str(path), "--correlation", "0.9").out
    assert f"{good['judged cases']['needed']['0.9']:,}" in table
