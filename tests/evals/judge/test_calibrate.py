"""A judge beside people, through the command line: agreement, and the win rate that its other cases sharpen."""

from __future__ import annotations

import json
import sqlite3

import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa as reference_kappa

from llmops.engines.completions import load_answers
from llmops.evals.judge.agreement import cohens_kappa
from llmops.evals.judge.pairwise import Outcome
from llmops.evals.judge.ppi import Others, Rated, calibrated_win_rate
from llmops.ratings.campaigns import is_closed, put_items
from llmops.records import Campaign, Item, JudgeCalibration
from llmops.stats import FloatArray
from tests.evals.judge.conftest import N_LOSSES, N_TIES, N_WINS, Court
from tests.evals.judge.referee import Seen, perfect, verdict
from tests.evals.voting import NAME, campaign_of, vote

TRUTH = ["first"] * N_WINS + ["second"] * N_LOSSES + ["tie"] * N_TIES
"""Who is right on the session's cases that differ."""


def opened(court: Court, every: int = 2, **changes: object) -> tuple[Campaign, list[str]]:
    """A campaign about every so many cases, and who is right on them in the campaign's order."""
    store = court.room.registry.store
    theirs, ours = (load_answers(store, report) for report in court.reports)
    items = [
        Item(case.messages, (mine.text, other.text), case.group, case.source)
        for (case, other), (_, mine) in zip(theirs, ours, strict=True)
    ][: len(TRUTH) : every]
    campaign = campaign_of(court.room, court.reports, len(items), items=put_items(store, items), **changes)
    return campaign, TRUTH[::every]


def named(record: JudgeCalibration) -> dict[str, float]:
    return {figure.name: figure.value for figure in record.figures}


def test_judge_that_says_what_people_say_agrees_fully_and_sharpens_their_rate(court: Court) -> None:
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    record = court.calibrated(court.judge(court.seat(perfect)), "--campaign", NAME)
    score = {"first": 1.0, "tie": 0.5, "second": 0.0}
    rated, others = [score[o] for o in truth], [score[o] for o in TRUTH[1::2]]
    expected = calibrated_win_rate(Rated(rated, rated), Others(others), 0.95)
    found = {figure.name: figure for figure in record.figures}
    assert (found["agreement"].value, found["kappa"].value) == (100.0, 1.0)
    assert found["people_win_rate"].value == pytest.approx(100 * np.mean(rated))
    assert found["calibrated_win_rate"].value == pytest.approx(50 + expected.interval.estimate)
    assert found["calibrated_win_rate"].low == pytest.approx(50 + expected.interval.low)
    assert (record.n_rated, record.n_votes, record.n_raters) == (len(truth), len(truth), 1)
    assert record.weight == pytest.approx(expected.weight)
    assert record.confusion["first"] == {"first": truth.count("first"), "tie": 0, "second": 0}


def test_calibration_is_stored_with_its_votes_and_told_to_the_ledger(court: Court) -> None:
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    record = court.calibrated(court.judge(court.seat(perfect)), "--campaign", NAME)
    registry = court.room.registry
    (event,) = registry.ledger.events("judge.calibrated")
    assert registry.store.get_record(JudgeCalibration, str(event.body["calibration"])) == record
    assert record.campaign == campaign.digest()
    assert registry.store.has("votes", record.votes)


def test_people_and_a_judge_with_a_place_bias_agree_on_nothing_that_is_decided(court: Court) -> None:
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    record = court.calibrated(court.judge(court.seat(lambda shown, nth: verdict("A"))), "--campaign", NAME)
    found = named(record)
    assert "agreement" not in found
    assert (found["kappa"], record.weight) == (0.0, 0.0)
    assert found["calibrated_win_rate"] == found["people_win_rate"]
    assert all(row["first"] == row["second"] == 0 for row in record.confusion.values())


def test_nothing_of_the_votes_shows_before_all_are_in(court: Court) -> None:
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth[:5])
    done = court.run(court.judge(court.seat(perfect)), "--campaign", NAME)
    assert done.code == 3
    assert f"{len(truth) - 5} items lack votes; not counted yet" in done.out
    assert "kappa" not in done.out
    assert not is_closed(court.room.registry.ledger, campaign.digest())


def test_campaign_is_closed_once_its_votes_were_looked_at(court: Court) -> None:
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    done = court.run(court.judge(court.seat(perfect)), "--campaign", NAME)
    assert (done.code, "calibrated win rate" in done.out, "judge: candidate" in done.out) == (0, True, True)
    assert is_closed(court.room.registry.ledger, campaign.digest())


def test_both_bad_and_split_items_are_ties_to_kappa_and_half_a_win(court: Court) -> None:
    campaign, truth = opened(court, votes_per_item=2)
    vote(court.room, campaign, "ann", ["both_bad" if o == "tie" else o for o in truth])
    vote(
        court.room,
        campaign,
        "bob",
        ["second" if i == 0 else "both_bad" if o == "tie" else o for i, o in enumerate(truth)],
    )
    record = court.calibrated(court.judge(court.seat(perfect)), "--campaign", NAME)
    split = ["tie", *truth[1:]]  # ann and bob differ on the first
    assert record.confusion["tie"] == {"first": 1, "tie": truth.count("tie"), "second": 0}
    wins, ties = split.count("first"), split.count("tie")
    assert named(record)["people_win_rate"] == pytest.approx(100 * (wins + ties / 2) / len(truth))


def test_case_the_judge_errored_on_keeps_its_vote_and_adds_nothing_of_the_judges(court: Court) -> None:
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    silent = (
        court.room.registry
        and load_answers(court.room.registry.store, court.reports[0])[0][0].messages[-1].content
    )

    def script(shown: Seen, nth: int) -> str:
        return "hm" if shown.request == silent else perfect(shown, nth)

    record = court.calibrated(court.judge(court.seat(script), max_errored_frac=0.1), "--campaign", NAME)
    assert record.n_rated == len(truth)
    assert sum(sum(row.values()) for row in record.confusion.values()) == len(truth) - 1
    score = {"first": 1.0, "tie": 0.5, "second": 0.0}
    people = [score[o] for o in truth]
    rated = Rated(people, [0.5, *people[1:]])
    expected = calibrated_win_rate(rated, Others([score[o] for o in TRUTH[1::2]]), 0.95)
    assert named(record)["calibrated_win_rate"] == pytest.approx(50 + expected.interval.estimate)


def test_altered_rating_is_no_evidence(court: Court) -> None:
    campaign, truth = opened(court)
    vote(court.room, campaign, "ann", truth)
    with sqlite3.connect(court.root / ".llmops" / "llmops.db") as database:
        database.execute("UPDATE ratings SET choice = 'tie' WHERE number = 3")
    done = court.run(court.judge(court.seat(perfect)), "--campaign", NAME)
    assert (done.code, "#3 was changed" in done.err) == (4, True)


def test_campaign_that_shows_other_answers_is_no_evidence(court: Court) -> None:
    store = court.room.registry.store
    theirs, _ = (load_answers(store, report) for report in court.reports)
    items = [Item(case.messages, ("x", answer.text), case.group, case.source) for case, answer in theirs][:5]
    campaign = campaign_of(court.room, court.reports, 5, items=put_items(store, items))
    vote(court.room, campaign, "ann", ["tie"] * 5)
    done = court.run(court.judge(court.seat(perfect)), "--campaign", NAME)
    assert (done.code, "does not show the answers of the two reports" in done.err) == (4, True)


def test_campaign_and_session_together_are_refused(court: Court) -> None:
    done = court.run(court.judge(court.seat(perfect)), "--campaign", NAME, "--session", "x")
    assert (done.code, "--campaign names its two reports by itself" in done.err) == (2, True)


def said(table: FloatArray) -> tuple[list[Outcome], list[Outcome]]:
    """What people (rows) and the judge (columns) say of the items that a [3, 3] table counts."""
    cells = np.repeat(np.arange(9), table.ravel().astype(int))
    names: tuple[Outcome, ...] = ("first", "tie", "second")
    return [names[i] for i in cells // 3], [names[i] for i in cells % 3]


def test_kappa_and_its_error_are_statsmodels() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        table = rng.integers(1, 20, size=(3, 3)).astype(float)
        found, reference = cohens_kappa(*said(table), 0.95), reference_kappa(table)
        n = table.sum()
        assert found is not None
        assert found.estimate == pytest.approx(reference.kappa)
        assert found.sd**2 / n == pytest.approx(reference.var_kappa * n / (n - 1))
        assert found.low < reference.kappa - 1.6 * np.sqrt(reference.var_kappa)


def test_kappa_of_judge_and_people_who_never_vary_is_none() -> None:
    table = np.zeros((3, 3))
    table[1, 1] = 20
    assert cohens_kappa(*said(table), 0.95) is None


def test_kappa_without_one_disagreement_is_not_certain() -> None:
    """The exact bound of 40 agreements in 40, chance being a half: (0.05^(1/40) - 0.5) / 0.5."""
    found = cohens_kappa(*said(np.diag([20.0, 0.0, 20.0])), 0.95)
    assert found is not None
    assert (found.estimate, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(2 * 0.05 ** (1 / 40) - 1)


def test_groups_of_the_suite_are_the_units_of_what_a_judge_says_and_of_its_calibration(court: Court) -> None:
    """The first 16 of 24 cases are rated; two and two are of one group, one of them half rated."""
    cases = [case for case, _ in load_answers(court.room.registry.store, court.reports[0])]
    lines = [
        {"prompt": case.messages[-1].content, "completion": case.references[0], "group": f"g{(i + 1) // 2}"}
        for i, case in enumerate(cases)
    ]
    (court.root / "grouped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    court.again(cluster="group", cases={"kind": "file", "path": "grouped.jsonl"})
    campaign = campaign_of(court.room, court.reports, 16)
    vote(court.room, campaign, "ann", TRUTH[:16])
    done = court.run(court.judge(court.seat(perfect)), "--campaign", NAME, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    calibrated, judged = (
        {f["name"]: f for f in said[part]["figures"]} for part in ("calibration", "judgements")
    )
    groups = [str(line["group"]) for line in lines]
    says = [{"first": 1.0, "tie": 0.5, "second": 0.0}[o] for o in TRUTH]
    rated, others = (
        Rated(says[:16], says[:16], clusters=groups[:16]),
        Others(says[16:], groups[16 : len(TRUTH)]),
    )
    expected = calibrated_win_rate(rated, others, 0.95).interval
    found = calibrated["calibrated_win_rate"]
    assert (found["low"], found["high"]) == (50 + expected.low, 50 + expected.high)
    assert found["method"].endswith("by group, of this rater alone")
    assert judged["win_rate"]["method"] == "clustered tango"
