"""Human evidence in a gate: looks at declared numbers of items, raters who agree, and votes that are no evidence."""

from __future__ import annotations

import json
from typing import Any

import krippendorff
import numpy as np
import pytest

from llmops import stats
from llmops.errors import ConfigError
from llmops.evals.gate import load_gate
from llmops.ratings.agreement import krippendorff_alpha
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import is_closed
from llmops.ratings.looks import reached
from llmops.records import Campaign, Rating
from tests.evals.conftest import BETTER, Room
from tests.evals.voting import NAME, campaign_of, evaluated, vote, wishes
from tests.in_process import llmops

LOOKS = (40, 60, 100)
WINS: dict[str, Any] = {"kind": "superior", "by": 0}


def asked(**settings: Any) -> dict[str, Any]:
    return {"campaign": NAME, "min_items": 40, "win_rate": WINS, **settings}


def check(room: Room, **settings: Any) -> tuple[int, dict[str, Any]]:
    """The decision of a gate that was planned with these ratings."""
    room.gate(BETTER, ratings=asked(**settings))
    done = llmops(room.workspace.root, "gate", "check", "gate.yaml", "--json")
    return done.code, json.loads(done.out)


def planned(room: Room, n_items: int, votes_per_item: int = 1, **settings: Any) -> Campaign:
    room.plan(BETTER, ratings=asked(**settings))
    return campaign_of(room, evaluated(room), n_items, votes_per_item)


def some(room: Room, campaign: Campaign, rater: str, n: int, wish: str) -> None:
    """One rater says the same about the next n items."""
    book = RatingBook(room.registry.store, room.registry.ledger, campaign)
    for _ in range(n):
        showing = book.next(rater)
        assert showing is not None
        side = {"first": showing.left == 0, "second": showing.left == 1}
        book.rate(showing.id, "left" if side.get(wish) else "right" if wish in side else wish)


# ---------------------------------------------------------------- looks


def test_votes_are_counted_at_exactly_the_declared_looks_with_wider_bounds(room: Room) -> None:
    campaign = planned(room, 100, looks=LOOKS)
    some(room, campaign, "ann", 39, "first")
    code, early = check(room, looks=LOOKS)
    assert (code, early["ratings"]) == (3, None)
    assert "39 of 40 items rated before the first look" in early["reasons"][0]
    some(room, campaign, "ann", 15, "second")
    code, first = check(room, looks=LOOKS)
    (rate,) = (c for c in first["checks"] if c["metric"] == "win_rate")
    level = stats.look_level([0.4, 0.6, 1.0], 1, 0.05)
    wins = [1] * 39 + [0]
    bounds = stats.paired_binary([1 - w for w in wins], wins, level)
    assert (code, rate["verdict"], rate["n_cases"]) == (0, "PASS", 40)
    assert (rate["level"], rate["low"]) == (pytest.approx(level), pytest.approx(50 * bounds.low))
    assert "look 1 of 3, O'Brien-Fleming" in rate["method"]
    assert is_closed(room.registry.ledger, campaign.digest())


def test_open_look_goes_on_to_the_next_and_asks_for_no_more_than_it(room: Room) -> None:
    campaign = planned(room, 100, looks=LOOKS)
    some(room, campaign, "ann", 24, "first")
    some(room, campaign, "ann", 18, "second")
    code, first = check(room, looks=LOOKS)
    assert (code, first["ratings"]["n_rated"]) == (3, 40)
    assert not is_closed(room.registry.ledger, campaign.digest())
    some(room, campaign, "ann", 58, "first")
    code, last = check(room, looks=LOOKS)
    assert (code, last["ratings"]["n_rated"]) == (0, 100)
    assert last["ratings"]["outcomes"]["second"] == 18


def test_vote_changed_after_its_look_changes_nothing(room: Room) -> None:
    campaign = planned(room, 100, looks=LOOKS)
    some(room, campaign, "ann", 24, "first")
    some(room, campaign, "ann", 16, "second")
    assert check(room, looks=LOOKS)[0] == 3
    book = RatingBook(room.registry.store, room.registry.ledger, campaign)
    for rating in book.ratings()[24:40]:
        book.rate(rating.showing, "left" if rating.left == 0 else "right")
    code, decision = check(room, looks=LOOKS)
    assert (code, decision["ratings"]["outcomes"]["second"]) == (3, 16)


def rating(number: int, item: str, rater: str, choice: str = "left", supersedes: str | None = None) -> Rating:
    return Rating(number, "c", item, rater, "s", 0, choice, "t", supersedes)  # type: ignore[arg-type]


def test_look_counts_items_that_have_all_their_votes_in_the_order_in_which_they_got_them() -> None:
    rows = [rating(1, "a", "r1"), rating(2, "b", "r1"), rating(3, "b", "r2"), rating(4, "c", "r1")]
    assert reached(rows, (1, 2), 3) is None
    look = reached(rows, (1, 2), 2)
    assert look is not None
    assert (look.place, [r.number for r in look.rows]) == (0, [2, 3])
    both = reached([*rows, rating(5, "a", "r2"), rating(6, "c", "r2")], (1, 2), 2)
    assert both is not None
    assert (both.place, [r.number for r in both.rows]) == (1, [1, 2, 3, 5])


def test_item_whose_vote_was_taken_back_before_the_look_is_not_full() -> None:
    rows = [rating(1, "a", "r1"), rating(2, "a", "r1", "skip", "x"), rating(3, "b", "r1")]
    look = reached(rows, (1,), 1)
    assert look is not None
    assert [r.number for r in look.rows] == [1]
    assert reached(rows, (2,), 1) is None


@pytest.mark.parametrize("looks", [(100, 50), (50, 50), (1, 50), (10, 20)])
def test_looks_that_do_not_rise_or_end_below_the_floor_are_refused(
    room: Room, looks: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match="looks"):
        load_gate(room.gate(BETTER, ratings=asked(looks=looks)))


# ---------------------------------------------------------------- agreement and raters


def test_alpha_is_that_of_the_package_krippendorff() -> None:
    rng = np.random.default_rng(3)
    names = ["first", "second", "tie", "both_bad"]
    for _ in range(20):
        table = rng.integers(0, 4, size=(3, 25)).astype(float)
        table[rng.random(table.shape) < 0.3] = np.nan
        units = [[names[int(x)] for x in column if x == x] for column in table.T]
        theirs = krippendorff.alpha(
            reliability_data=table, level_of_measurement="nominal", value_domain=range(4)
        )
        ours = krippendorff_alpha(units)
        assert ours.alpha == pytest.approx(theirs)
        assert ours.n_items == sum(len(unit) > 1 for unit in units)


def test_raters_who_agree_no_more_than_chance_are_no_evidence_whatever_they_say(room: Room) -> None:
    rules = {"agreement": {"at_least": 0.4}, "min_raters": 2}
    campaign = planned(room, 40, 2, **rules)
    vote(room, campaign, "ann", wishes(30, 10))
    vote(room, campaign, "bob", [*wishes(15, 5), *wishes(15, 5)])
    code, decision = check(room, **rules)
    units = [[a, b] for a, b in zip(wishes(30, 10), [*wishes(15, 5), *wishes(15, 5)], strict=True)]
    found = krippendorff_alpha(units).alpha
    assert found is not None
    assert found < 0.4
    assert (code, decision["verdict"], decision["checks"]) == (4, "INVALID", [])
    assert f"Krippendorff's alpha is {found:.2f} over 40 items" in decision["reasons"][0]


def test_raters_who_agree_are_counted(room: Room) -> None:
    rules = {"agreement": {"at_least": 0.4}, "min_raters": 2}
    campaign = planned(room, 40, 2, **rules)
    vote(room, campaign, "ann", wishes(32, 8))
    vote(room, campaign, "bob", wishes(30, 10))
    code, decision = check(room, **rules)
    assert (code, decision["ratings"]["n_raters"]) == (0, 2)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_raters": 2}, "1 rater, the gate asks for 2"),
        ({"agreement": {"at_least": 0.1}}, "could not be computed: 0 items have two votes"),
    ],
)
def test_one_rater_alone_is_no_evidence_where_more_are_asked_for(
    room: Room, rules: dict[str, Any], message: str
) -> None:
    campaign = planned(room, 40, **rules)
    vote(room, campaign, "ann", wishes(40, 0))
    code, decision = check(room, **rules)
    assert (code, decision["verdict"]) == (4, "INVALID")
    assert message in decision["reasons"][0]


def test_agreement_on_one_answer_alone_cannot_be_told_from_chance(room: Room) -> None:
    rules = {"agreement": {"at_least": 0.1}}
    campaign = planned(room, 40, 2, **rules)
    for rater in ("ann", "bob"):
        vote(room, campaign, rater, wishes(40, 0))
    code, decision = check(room, **rules)
    assert code == 4
    assert "all votes on the 40 items with two votes are one answer" in decision["reasons"][0]


def test_reason_of_votes_that_are_in_doubt_is_the_doubt(room: Room) -> None:
    """Eleven wins of eleven lie far above even: they are too few for the interval, not too close to the threshold."""
    campaign = planned(room, 11, min_items=2)
    vote(room, campaign, "ann", ["first"] * 11)
    code, decision = check(room, min_items=2)
    assert code == 3
    (reason,) = [r for r in decision["reasons"] if r.startswith("win_rate")]
    assert "11 independent units are too few: at least 12 are needed" in reason
    assert "does not clear" not in reason
