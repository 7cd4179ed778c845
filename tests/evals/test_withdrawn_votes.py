"""A gate and raters who withdraw: before a result was seen their votes are not there, afterwards nothing is decided."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import find_campaign
from llmops.ratings.withdrawn import withdraw
from llmops.records import Campaign, VotePlan
from tests.evals.conftest import BETTER, Room, write
from tests.evals.voting import NAME, campaign_of, evaluated, vote, wishes
from tests.in_process import llmops

pytestmark = pytest.mark.walk

WINS: dict[str, Any] = {"kind": "superior", "by": 0}


def asked(**settings: Any) -> dict[str, Any]:
    return {"campaign": NAME, "min_items": 40, "win_rate": WINS, **settings}


def check(room: Room, **settings: Any) -> tuple[int, dict[str, Any]]:
    room.gate(BETTER, ratings=asked(**settings))
    done = llmops(room.workspace.root, "gate", "check", "gate.yaml", "--json")
    return done.code, json.loads(done.out)


def campaign(room: Room, **settings: Any) -> Campaign:
    room.plan(BETTER, ratings=asked(**settings))
    return campaign_of(room, evaluated(room), 50, votes_per_item=2)


def test_votes_taken_back_before_a_result_are_left_out_and_the_check_says_so(room: Room) -> None:
    opened = campaign(room)
    vote(room, opened, "ann", wishes(50, 0))
    vote(room, opened, "ben", wishes(0, 50))
    withdraw(room.registry.ledger, "ben")
    code, early = check(room)
    assert code == 3
    assert "0 of 50 items rated" in early["reasons"][0]
    vote(room, opened, "cid", wishes(50, 0))
    code, decision = check(room)
    (rate,) = (c for c in decision["checks"] if c["metric"] == "win_rate")
    assert (code, rate["candidate"]) == (0, 100.0)
    assert "without the votes of 1 rater(s) who withdrew" in rate["method"]
    assert (decision["ratings"]["n_votes"], decision["ratings"]["n_raters"]) == (100, 2)


def test_votes_taken_back_after_a_result_decide_nothing_any_more(room: Room) -> None:
    """Leaving them out would choose the result: those of the rater who disagreed would always be the ones to go."""
    opened = campaign(room)
    vote(room, opened, "ann", wishes(50, 0))
    vote(room, opened, "ben", wishes(0, 50))
    code, first = check(room)
    assert code == 3
    withdraw(room.registry.ledger, "ben")
    code, second = check(room)
    assert (code, second["verdict"]) == (4, "INVALID")
    assert "votes: 50 of the 100 votes that decision" in second["reasons"][0]
    assert "were taken back since, when its result was known; open the campaign again" in second["reasons"][0]
    assert first["ratings"]["n_votes"] == 100


def test_what_the_campaigns_file_declares_is_what_its_raters_get(room: Room) -> None:
    """Overlap, gold items, repeats and the gate's looks, from two YAML files to the items people see."""
    rules = asked(looks=[40, 100], agreement={"at_least": 0.2, "min_items": 10}, min_raters=2)
    room.plan(BETTER, ratings=rules)
    evaluated(room)
    room.gate(BETTER, ratings=rules)
    root = room.workspace.root
    lines = [{"prompt": f"is {i} even?", "answers": ["yes", "no"], "known": "first"} for i in range(3)]
    (root / "gold.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(
        root / "campaign.yaml",
        {
            "name": NAME, "purpose": "gate", "gate": "gate.yaml", "n_items": 60, "overlap": {"frac": 0.25},
            "gold": {"file": "gold.jsonl", "every": 5}, "repeats_frac": 0.1,
        },
    )  # fmt: skip
    done = llmops(root, "feedback", "open", "campaign.yaml")
    assert done.code == 0, done.err
    opened = find_campaign(room.registry.store, room.registry.ledger, NAME)
    assert (opened.n_items, opened.n_gold, opened.n_repeats, opened.gold_every) == (60, 3, 6, 5)
    assert opened.plan == VotePlan((40, 100), 40, 2, 10, "superior", 0, 0.95, 0.8)
    book = RatingBook(room.registry.store, room.registry.ledger, opened)
    assert Counter(book.votes_of(item) for item in book.items()) == {1: 45, 2: 15}
    # Ann, alone: first the items on which agreement will be computed, then the others; gold and repeats between.
    asked_of_ann = []
    for _ in range(40):
        showing = book.next("ann")
        assert showing is not None
        asked_of_ann.append(showing.item)
        book.rate(showing.id, "left" if showing.left == 0 else "right")
    counting = [item for item in asked_of_ann if item.counts]
    assert all(book.votes_of(item) == 2 for item in counting[:15])
    assert [item.known for item in asked_of_ann].count("first") == 3
    assert any(item.repeat_of for item in asked_of_ann)
    told = json.loads(llmops(root, "feedback", "insight", NAME, "--json").out)
    assert (told["gold"]["hits"], told["repeats"]["hits"]) == (3, told["repeats"]["n"])
    assert told["needs"]["next_look"] == 40
    assert told["needs"]["n_raters_missing"] == 1
    assert told["needs"]["n_agreement_items_missing"] == 10
    # Ben: those that lack one vote to be full come before those that nobody has rated.
    first = book.next("ben")
    while first is not None and not first.item.counts:  # gold comes at a drawn place
        book.rate(first.id, "tie")
        first = book.next("ben")
    assert first is not None
    assert book.votes_of(first.item) == 2
    assert first.item in counting
    code, decision = check(
        room, **{k: v for k, v in rules.items() if k not in ("campaign", "win_rate", "min_items")}
    )
    assert code == 3
    assert "items rated before the first look" in decision["reasons"][0]


BAD_GOLD = {
    "no known": ('{"prompt": "q", "answers": ["a", "b"]}', "gold.jsonl:1: known: Field required"),
    "three answers": (
        '{"prompt": "q", "answers": ["a", "b", "c"], "known": "tie"}',
        "kind compare needs two answers",
    ),
    "another word": (
        '{"prompt": "q", "answers": ["a", "b"], "known": "left"}',
        'known: "left" is no answer; give first',
    ),
    "scores": (
        '{"prompt": "q", "answers": ["a", "b"], "known": {"x": 3}}',
        "is no answer; give first or second",
    ),
    "no prompt": ('{"answers": ["a", "b"], "known": "tie"}', "give `prompt`, or `messages`"),
    "no JSON": ("{", "gold.jsonl:1: "),
}


@pytest.mark.parametrize("what", BAD_GOLD)
def test_gold_line_that_says_nothing_is_named_and_opens_nothing(room: Room, what: str) -> None:
    line, said = BAD_GOLD[what]
    room.plan(BETTER, ratings=asked())
    evaluated(room)
    room.gate(BETTER, ratings=asked())
    (room.workspace.root / "gold.jsonl").write_text(line + "\n")
    settings = {"name": NAME, "purpose": "gate", "gate": "gate.yaml", "gold": {"file": "gold.jsonl"}}
    write(room.workspace.root / "campaign.yaml", settings)
    done = llmops(room.workspace.root, "feedback", "open", "campaign.yaml")
    assert (done.code, said in done.err) == (2, True), done.err
    assert room.registry.ledger.events("campaign.opened") == []
