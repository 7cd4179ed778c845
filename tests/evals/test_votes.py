"""Votes in the gate: checks with known values, nothing shown before all are in, and no decision on touched ratings."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats as scipy_stats

from llmops import stats
from llmops.errors import BadRequest, ConfigError
from llmops.evals.electorate import Electorate
from llmops.evals.gate import check_gate, load_gate
from llmops.evals.gate.people import RatingRules
from llmops.evals.gate.vote_checks import vote_lines
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import close_campaign, find_campaign, put_items
from llmops.records import Campaign, Check, Decision, Report
from tests.evals.conftest import BETTER, Room, write
from tests.evals.voting import NAME, campaign_of, evaluated, vote, wishes
from tests.in_process import llmops

WORSE = {"metric": "exact_match", "kind": "superior", "by": 90}
WINS: dict[str, Any] = {"kind": "superior", "by": 0}


def asked(win_rate: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    return {"campaign": NAME, "min_items": 40, "win_rate": win_rate or WINS, **settings}


@pytest.fixture(autouse=True)
def _plans(room: Room) -> None:
    """The gates that the tests decide by, declared before anything is asked."""
    for checks, settings in (
        ((BETTER,), {"ratings": asked()}),
        ((BETTER,), {"ratings": asked(max_both_bad=20)}),
        ((BETTER,), {"ratings": asked(max_both_bad=40), "approvals": 2}),
        ((WORSE,), {"ratings": asked()}),
    ):
        room.plan(*checks, **settings)


def decide(room: Room, ratings: dict[str, Any] | None = None, **settings: Any) -> Decision:
    return check_gate(room.gate(BETTER, ratings=ratings or asked(), **settings), room.workspace)


def votes_of(decision: Decision) -> dict[str, Check]:
    return {check.metric: check for check in decision.checks if check.metric in ("win_rate", "both_bad")}


def rated(room: Room, said: list[str]) -> Campaign:
    """A campaign as large as what one rater says, all of it rated."""
    campaign = campaign_of(room, evaluated(room), len(said))
    vote(room, campaign, "ann", said)
    return campaign


# ---------------------------------------------------------------- values


def test_30_wins_10_losses_and_10_ties_are_a_win_rate_of_70_percent(room: Room) -> None:
    campaign = rated(room, wishes(30, 10, tie=10))
    decision = decide(room)
    check = votes_of(decision)["win_rate"]
    losses, wins = [0] * 30 + [1] * 10 + [0] * 10, [1] * 30 + [0] * 20
    bounds = stats.paired_binary(losses, wins, 0.95)
    assert (decision.verdict, check.verdict, check.n_cases, check.n_needed) == ("PASS", "PASS", 50, None)
    assert (check.baseline, check.candidate, check.difference) == (
        50.0,
        pytest.approx(70.0),
        pytest.approx(20.0),
    )
    assert (check.low, check.high) == (pytest.approx(50 * bounds.low), pytest.approx(50 * bounds.high))
    assert decision.ratings is not None
    assert decision.ratings.outcomes == {"first": 30, "second": 10, "tie": 10, "both_bad": 0, "split": 0}
    assert (decision.ratings.campaign, decision.ratings.n_items) == (campaign.digest(), 50)
    assert (decision.ratings.n_rated, decision.ratings.n_votes, decision.ratings.n_raters) == (50, 50, 1)


@pytest.mark.parametrize(
    ("said", "rule", "verdict"),
    [
        (wishes(30, 20), WINS, "INCONCLUSIVE"),
        (wishes(25, 25), WINS, "INCONCLUSIVE"),
        (wishes(10, 30, tie=10), WINS, "FAIL"),
        (wishes(30, 10, tie=10), {"kind": "superior", "by": 8}, "PASS"),
        (wishes(30, 10, tie=10), {"kind": "superior", "by": 12}, "INCONCLUSIVE"),
        (wishes(25, 25), {"kind": "non_inferior", "margin": 15}, "PASS"),
        (wishes(25, 25), {"kind": "non_inferior", "margin": 5}, "INCONCLUSIVE"),
        (wishes(10, 30, tie=10), {"kind": "non_inferior", "margin": 5}, "FAIL"),
        (wishes(0, 0, tie=50), {"kind": "non_inferior", "margin": 5}, "PASS"),
        (wishes(0, 0, tie=50), WINS, "INCONCLUSIVE"),
        (wishes(0, 0, both_bad=50), WINS, "INCONCLUSIVE"),
    ],
)
def test_verdict_follows_the_votes(said: list[str], rule: dict[str, Any], verdict: str) -> None:
    rules = RatingRules.model_validate(asked(rule))
    (line,) = vote_lines(rules, Electorate.of([[("ann", vote)] for vote in said]), level=0.95, power=0.8)  # type: ignore[list-item]
    assert line.check.verdict == verdict


def test_votes_of_a_person_or_on_a_group_are_alike_where_each_item_has_one() -> None:
    """Five raters of whom three like the candidate always and two never; ten groups of which six are always won."""
    rules = RatingRules.model_validate(asked(WINS))
    by_rater = [[(f"r{i % 5}", "first" if i % 5 < 3 else "second")] for i in range(100)]
    one_rater = [[("ann", vote)] for ((_, vote),) in by_rater]
    by_group = [[("ann", "first" if i % 10 < 6 else "second")] for i in range(100)]
    found = [
        vote_lines(rules, electors, 0.95, 0.8)[0].check
        for electors in (
            Electorate.of(one_rater),  # type: ignore[arg-type]
            Electorate.of(by_rater),  # type: ignore[arg-type]
            Electorate.of(by_group, [f"g{i % 10}" for i in range(100)]),  # type: ignore[arg-type]
        )
    ]
    plain, raters, groups = (check.high - check.low for check in found)
    assert [check.difference for check in found] == pytest.approx([10.0] * 3)
    assert raters > 3 * plain
    assert groups > 2.5 * plain
    assert "clustered by item and rater" in found[1].method
    assert "clustered by group, of this rater alone" in found[2].method


@pytest.mark.parametrize(("n_bad", "verdict"), [(2, "PASS"), (8, "INCONCLUSIVE"), (20, "FAIL")])
def test_share_of_both_bad_is_held_against_its_limit_by_the_exact_interval(
    room: Room, n_bad: int, verdict: str
) -> None:
    rated(room, wishes(50 - n_bad, 0, both_bad=n_bad))
    decision = decide(room, asked(max_both_bad=20))
    check = votes_of(decision)["both_bad"]
    exact = scipy_stats.binomtest(n_bad, 50).proportion_ci(0.9)
    assert (check.kind, check.threshold, check.verdict) == ("at_most", 20, verdict)
    assert check.difference == check.candidate == pytest.approx(2 * n_bad)
    assert (check.low, check.high) == (
        pytest.approx(100 * exact.low),
        pytest.approx(100 * exact.high),
    )
    assert decision.verdict == verdict
    if verdict == "FAIL":
        assert "of the rated items lies above 20 %" in decision.reasons[0]


def test_share_of_both_bad_is_not_asked_unless_the_gate_does(room: Room) -> None:
    rated(room, wishes(40, 0, both_bad=10))
    assert votes_of(decide(room)).keys() == {"win_rate"}


def test_two_raters_who_disagree_split_an_item_which_counts_half(room: Room) -> None:
    campaign = campaign_of(room, evaluated(room), 50, votes_per_item=2)
    vote(room, campaign, "ann", wishes(30, 20))
    vote(room, campaign, "bob", wishes(20, 20, tie=10))
    decision = decide(room)
    # 20 won by both, 10 split between a win and a loss, 10 lost by both, 10 split between a loss and a tie: 50 wins and
    # 10 ties of 100 votes.
    assert decision.ratings is not None
    assert decision.ratings.outcomes == {"first": 20, "second": 10, "tie": 0, "both_bad": 0, "split": 20}
    assert (decision.ratings.n_votes, decision.ratings.n_raters) == (100, 2)
    assert votes_of(decision)["win_rate"].candidate == pytest.approx(55.0)


def test_of_three_votes_two_decide(room: Room) -> None:
    campaign = campaign_of(room, evaluated(room), 40, votes_per_item=3)
    for rater, said in (("ann", wishes(40, 0)), ("bob", wishes(30, 10)), ("cat", wishes(20, 20))):
        vote(room, campaign, rater, said)
    decision = decide(room)
    assert decision.ratings is not None
    assert decision.ratings.outcomes == {"first": 30, "second": 10, "tie": 0, "both_bad": 0, "split": 0}


def test_changed_mind_counts_as_it_was_changed(room: Room) -> None:
    campaign = rated(room, wishes(40, 0))
    book = RatingBook(room.registry.store, room.registry.ledger, campaign)
    for rating in book.ratings()[:15]:
        book.rate(rating.showing, "both_bad")
    decision = decide(room)
    assert decision.ratings is not None
    assert (decision.ratings.outcomes["first"], decision.ratings.outcomes["both_bad"]) == (25, 15)
    assert decision.ratings.n_votes == 40


def test_closed_campaign_counts_what_it_has_and_skips_are_no_votes(room: Room) -> None:
    campaign = campaign_of(room, evaluated(room), 60)
    vote(room, campaign, "ann", wishes(40, 5, skip=15))
    assert decide(room).ratings is None
    close_campaign(room.registry.ledger, campaign)
    decision = decide(room)
    assert decision.verdict == "PASS"
    assert decision.ratings is not None
    assert (decision.ratings.n_items, decision.ratings.n_rated, decision.ratings.n_votes) == (60, 45, 45)


def test_fewer_rated_items_than_asked_for_decide_nothing(room: Room) -> None:
    rated(room, wishes(30, 0))
    decision = decide(room, asked(max_both_bad=20))
    assert {check.verdict for check in votes_of(decision).values()} == {"INCONCLUSIVE"}
    assert votes_of(decision)["win_rate"].n_needed == 40
    assert decision.reasons[0].startswith("win_rate: 30 rated items decide nothing; the gate asks for 40")


@pytest.mark.parametrize("n_rated", [0, 1])
def test_campaign_closed_with_next_to_nothing_is_inconclusive(room: Room, n_rated: int) -> None:
    campaign = campaign_of(room, evaluated(room), 50)
    if n_rated:
        book = RatingBook(room.registry.store, room.registry.ledger, campaign)
        showing = book.next("ann")
        assert showing is not None
        book.rate(showing.id, "left")
    close_campaign(room.registry.ledger, campaign)
    decision = decide(room)
    assert decision.verdict == "INCONCLUSIVE"
    assert f"{n_rated} rated items decide nothing" in decision.reasons[0]


def test_items_said_to_be_needed_would_pass(room: Room) -> None:
    rated(room, wishes(28, 20, tie=2))
    needed = votes_of(decide(room))["win_rate"].n_needed
    assert needed is not None
    assert needed > 50
    k = needed / 50
    wins, losses = round(28 * k), round(20 * k)
    a, b = [0] * wins + [1] * losses, [1] * wins + [0] * losses
    rest = [0] * (needed - len(a))
    assert stats.paired_binary(a + rest, b + rest, 0.95).low > 0


def test_votes_and_metrics_must_both_pass(room: Room) -> None:
    rated(room, wishes(30, 10, tie=10))
    lost = check_gate(room.gate(WORSE, ratings=asked()), room.workspace)
    assert (lost.verdict, votes_of(lost)["win_rate"].verdict) == ("FAIL", "PASS")
    assert decide(room).verdict == "PASS"


def test_failing_metric_fails_before_anyone_has_voted(room: Room) -> None:
    evaluated(room)
    assert check_gate(room.gate(WORSE, ratings=asked()), room.workspace).verdict == "FAIL"


# ---------------------------------------------------------------- which campaign


def test_without_a_campaign_nothing_is_known_and_the_next_command_is_named(room: Room) -> None:
    evaluated(room)
    decision = decide(room)
    check = votes_of(decision)["win_rate"]
    assert (decision.verdict, check.n_cases, check.n_needed) == ("INCONCLUSIVE", 0, 40)
    assert (check.candidate, check.difference, check.low, check.high) == (50, 0, -50, 50)
    assert decision.ratings is None
    assert "no campaign docs-gate about these two reports; run `llmops feedback open`" in decision.reasons[0]
    json.dumps(decision.to_dict(), allow_nan=False)


def test_open_campaign_says_how_far_it_is_and_shows_no_number(room: Room) -> None:
    campaign = campaign_of(room, evaluated(room), 60)
    book = RatingBook(room.registry.store, room.registry.ledger, campaign)
    for _ in range(45):
        showing = book.next("ann")
        assert showing is not None
        book.rate(showing.id, "left" if showing.left == 0 else "right")
    decision = decide(room, asked(max_both_bad=20))
    checks = votes_of(decision)
    assert (decision.verdict, decision.ratings, checks.keys()) == ("INCONCLUSIVE", None, {"win_rate"})
    found = checks["win_rate"]
    assert (found.n_cases, found.n_needed) == (45, 60)
    assert (found.candidate, found.low, found.high) == (50, -50, 50)
    assert "45 of 60 items rated in campaign docs-gate" in decision.reasons[0]
    assert "`llmops feedback ui docs-gate`" in decision.reasons[0]
    assert "`llmops feedback close docs-gate`" in decision.reasons[0]
    assert room.registry.store.digests("votes") == []


def other_session(room: Room, reports: list[Report]) -> None:
    vote(room, campaign_of(room, reports), "ann", wishes(50, 0))
    evaluated(room)


def other_name(room: Room, reports: list[Report]) -> None:
    vote(room, campaign_of(room, reports, name="elsewhere"), "ann", wishes(50, 0))


def other_order(room: Room, reports: list[Report]) -> None:
    base, tuned = reports
    about = (base.digest(), tuned.digest())
    vote(room, campaign_of(room, reports, reports=about), "ann", wishes(50, 0))


def for_training(room: Room, reports: list[Report]) -> None:
    vote(room, campaign_of(room, reports, purpose="train", reports=None), "ann", wishes(50, 0))


@pytest.mark.parametrize("make", [other_session, other_name, other_order, for_training])
def test_campaign_about_something_else_does_not_count(room: Room, make: Any) -> None:
    make(room, evaluated(room))
    decision = decide(room)
    assert decision.verdict == "INCONCLUSIVE"
    assert "no campaign docs-gate about these two reports" in decision.reasons[0]


def test_newest_campaign_about_the_reports_counts_and_the_others_are_told_of(room: Room) -> None:
    reports = evaluated(room)
    for said in (wishes(10, 40), wishes(40, 10)):
        vote(room, campaign_of(room, reports, created_at=str(len(said)) + said[20]), "ann", said)
    decision = decide(room)
    assert decision.verdict == "PASS"
    assert "newest of 2 campaigns about these reports" in votes_of(decision)["win_rate"].method


# ---------------------------------------------------------------- frozen and touched


def test_counted_votes_are_frozen_without_names(room: Room) -> None:
    campaign = campaign_of(room, evaluated(room), 40, votes_per_item=2)
    vote(room, campaign, "ann@example.org", wishes(40, 0))
    vote(room, campaign, "bob@example.org", wishes(30, 10))
    decision = decide(room)
    assert decision.ratings is not None
    text = (room.registry.store.verify("votes", decision.ratings.votes) / "votes.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    ratings = RatingBook(room.registry.store, room.registry.ledger, campaign).ratings()
    assert [row["rating"] for row in rows] == [rating.digest for rating in ratings]
    assert [(row["rater"], row["vote"]) for row in rows] == [("r1", "first")] * 40 + [
        ("r2", "first" if i < 30 else "second") for i in range(40)
    ]
    assert "example.org" not in text + json.dumps(decision.to_dict())


TOUCHES = {
    "choice": "UPDATE ratings SET choice = 'tie' WHERE number = 3",
    "side": "UPDATE showings SET left = 1 - left",
    "rater": "UPDATE ratings SET rater = 'eve' WHERE number = 3",
    "deleted": "DELETE FROM ratings WHERE number = 3",
    "not live": "UPDATE ratings SET live = 0 WHERE number = 3",
    "forged": (
        "INSERT INTO ratings (number, digest, campaign, item, rater, showing, left, choice, at, supersedes, live) "
        "SELECT 99, substr(digest, 2) || substr(digest, 1, 1), campaign, item, 'eve', showing, left, choice, at, "
        "supersedes, live FROM ratings WHERE number = 3"
    ),
}


def test_touched_rating_makes_the_decision_invalid_not_a_fail(room: Room) -> None:
    rated(room, wishes(40, 0))
    with (
        sqlite3.connect(room.workspace.state / "llmops.db") as database,
        sqlite3.connect(":memory:") as whole,
    ):
        database.backup(whole)
        for touch, statement in TOUCHES.items():
            database.execute(statement)
            database.commit()
            decision = decide(room)
            assert (decision.verdict, decision.checks, decision.ratings) == ("INVALID", (), None), touch
            assert decision.reasons[0].startswith("ratings: "), touch
            whole.backup(database)
    assert decide(room).verdict == "PASS"


def test_touched_rating_of_another_campaign_does_not_stop_this_one(room: Room) -> None:
    reports = evaluated(room)
    vote(room, campaign_of(room, reports, name="elsewhere"), "ann", wishes(50, 0))
    vote(room, campaign_of(room, reports), "ann", wishes(50, 0))
    with sqlite3.connect(room.workspace.state / "llmops.db") as connection:
        connection.execute(TOUCHES["choice"])
    assert decide(room).verdict == "PASS"


def test_items_that_show_other_answers_than_the_reports_are_invalid(room: Room) -> None:
    reports = evaluated(room)
    genuine = campaign_of(room, reports, 40, name="elsewhere")
    items = RatingBook(room.registry.store, room.registry.ledger, genuine).items()
    polished = [replace(items[0], answers=("a better answer", items[0].answers[1])), *items[1:]]
    forged = campaign_of(room, reports, 40, items=put_items(room.registry.store, polished))
    vote(room, forged, "ann", wishes(40, 0))
    decision = decide(room)
    assert decision.verdict == "INVALID"
    assert "does not show the answers of the two reports" in decision.reasons[0]


@pytest.mark.parametrize("kind", ["campaign_record", "items"])
def test_campaign_that_is_gone_is_invalid(room: Room, kind: str) -> None:
    rated(room, wishes(40, 0))
    (digest,) = room.registry.store.digests(kind)
    (room.registry.store.path(kind, digest) / "manifest.json").unlink()
    decision = decide(room)
    assert decision.verdict == "INVALID"
    assert f"{kind} {digest[:12]} is gone" in decision.reasons[0]


# ---------------------------------------------------------------- the gate's file and the command line


def test_gate_digest_covers_ratings_and_approvals(room: Room) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"approvals": 1},
        {"ratings": asked()},
        {"ratings": asked(min_items=41)},
        {"ratings": asked(max_both_bad=20)},
        {"ratings": asked({"kind": "superior", "by": 1})},
        {"ratings": asked({"kind": "non_inferior", "margin": 1})},
        {"ratings": asked() | {"campaign": "other"}},
    ]
    digests = {load_gate(room.gate(BETTER, **changes)).digest for changes in settings}
    assert len(digests) == len(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratings": asked(max_bad=3)}, "max_bad is not a setting; did you mean"),
        ({"ratings": {"campaign": NAME}}, "win_rate is missing"),
        ({"ratings": asked({"kind": "non_inferior", "margin": 50})}, "margin: "),
        ({"ratings": asked(min_items=1)}, "min_items: "),
        ({"ratings": asked(max_both_bad=0)}, "max_both_bad: "),
        ({"approvals": -1}, "approvals: "),
    ],
)
def test_gate_that_misspells_what_people_are_asked_is_refused(
    room: Room, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_gate(room.gate(BETTER, **settings))


def test_votes_approvals_and_release_go_through_the_command_line(room: Room) -> None:
    evaluated(room)
    gate = str(room.gate(BETTER, ratings=asked(max_both_bad=40), approvals=2))
    root = room.workspace.root
    file = write(
        root / "campaign.yaml", {"name": NAME, "purpose": "gate", "gate": "gate.yaml", "n_items": 50}
    )
    opened = llmops(root, "feedback", "open", str(file))
    assert opened.code == 0, opened.err
    campaign = find_campaign(room.registry.store, room.registry.ledger, NAME)
    undecided = llmops(root, "gate", "check", gate)
    assert undecided.code == 3
    assert "not counted yet" in undecided.out
    assert "0 of 50 items rated" in undecided.out
    vote(room, campaign, "ann", wishes(25, 8, tie=10, both_bad=7))
    decided = llmops(root, "gate", "check", gate)
    assert decided.code == 0, decided.out + decided.err
    assert "50.0 -> 67.0" in decided.out
    assert (
        "50 items of 50 rated by 1 rater (50 votes): 25 for the candidate, 8 for the baseline" in decided.out
    )
    assert "7 both bad (14.0 %)" in decided.out
    assert "approvals: 0 of 2: nobody yet" in decided.out

    refused = llmops(root, "release", "promote", "docs")
    assert refused.code == 3
    assert "has 0 of 2 approvals; run `llmops approve " in refused.err
    first = llmops(root, "approve", "--as", "ann", "--reason", "read all of them")
    assert first.out.startswith("1 of 2 approvals of decision ")
    assert f"about {room.adapter.model_name}" in first.out
    assert llmops(root, "approve", "docs", "--as", "Ann ").code == 2
    status = llmops(root, "status").out
    assert "win rate 67.0 % [" in status
    assert "approvals 1 of 2: ann" in status
    second = json.loads(llmops(root, "approve", "docs", "--as", "bob", "--json").out)
    assert (second["n_given"], second["n_needed"], second["approver"]) == (2, 2, "bob")
    promoted = llmops(root, "release", "promote", "docs")
    assert promoted.code == 0, promoted.err
    assert room.registry.ledger.events("release.requested")[-1].body["adapter"] == room.adapter.adapter
    verified = llmops(root, "ledger", "verify")
    assert verified.code == 0, verified.err
    assert "3 anchors" in verified.out


def test_touched_rating_ends_the_command_with_4(room: Room) -> None:
    rated(room, wishes(40, 0))
    with sqlite3.connect(room.workspace.state / "llmops.db") as connection:
        connection.execute(TOUCHES["choice"])
    done = llmops(room.workspace.root, "gate", "check", str(room.gate(BETTER, ratings=asked())))
    assert done.code == 4
    assert "ratings: #3 was changed" in done.out
    assert "INVALID" in done.out.splitlines()[-1]


def test_shipped_gate_asks_for_the_campaign_that_names_it_and_for_no_more_items_than_it_shows() -> None:
    root = Path(__file__).parents[2]
    gate = load_gate(root / "evals" / "gates" / "docstrings-rated.yaml")
    campaign = yaml.safe_load((root / "feedback_ui" / "docstrings-gate.yaml").read_text())
    assert gate.ratings is not None
    assert (gate.ratings.campaign, campaign["gate"]) == (
        campaign["name"],
        "../evals/gates/docstrings-rated.yaml",
    )
    assert gate.ratings.min_items <= campaign["n_items"]


def test_vote_that_was_counted_cannot_be_changed_to_ask_again(room: Room) -> None:
    campaign = rated(room, wishes(40, 0))
    book = RatingBook(room.registry.store, room.registry.ledger, campaign)
    before = decide(room)
    with pytest.raises(BadRequest, match="is closed"):
        book.rate(book.ratings()[0].showing, "both_bad")
    assert decide(room).ratings == before.ratings
