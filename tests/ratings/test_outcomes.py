"""What several votes come to: every rule of the sentence that snapshots carry."""

from __future__ import annotations

from collections import Counter
from itertools import permutations, product
from typing import get_args

import pytest

from llmops.ratings.outcomes import RULE, Vote, live, outcome, vote_of, votes_by_item
from llmops.records import Choice, Rating

VOTES: tuple[Vote, ...] = get_args(Vote)


def rating(number: int, choice: Choice, left: int = 0, rater: str = "ann", **fields: str) -> Rating:
    return Rating(number, "c" * 64, fields.pop("item", "i"), rater, f"s{number}", left, choice, "t", **fields)


def test_every_ballot_of_up_to_four_votes_comes_to_its_plurality_or_split() -> None:
    """Against the definition itself: the only most frequent vote, else split."""
    for n in range(1, 5):
        for ballot in product(VOTES, repeat=n):
            counts = Counter(ballot)
            most = max(counts.values())
            winners = [vote for vote, count in counts.items() if count == most]
            expected = winners[0] if len(winners) == 1 else "split"
            assert outcome(ballot) == expected, ballot


def test_order_of_votes_changes_nothing() -> None:
    for ballot in permutations(("first", "second", "tie", "first")):
        assert outcome(ballot) == "first"


@pytest.mark.parametrize(
    ("choice", "left", "vote"),
    [
        ("left", 0, "first"),
        ("left", 1, "second"),
        ("right", 0, "second"),
        ("right", 1, "first"),
        ("tie", 1, "tie"),
        ("both_bad", 0, "both_bad"),
        ("skip", 1, None),
    ],
)
def test_choice_on_the_page_is_a_vote_for_an_answer(choice: Choice, left: int, vote: Vote | None) -> None:
    assert vote_of(rating(1, choice, left)) == vote


def test_only_a_raters_last_rating_counts_even_when_rows_come_in_any_order() -> None:
    one = rating(1, "left")
    two = rating(2, "right", supersedes=one.digest)
    three = rating(3, "skip", supersedes=two.digest)
    other = rating(4, "left", rater="ben")
    for rows in permutations((one, two, other)):
        assert live(rows) == [two, other]
        assert votes_by_item(rows) == {"i": ["second", "first"]}
    assert votes_by_item([one, two, three]) == {}


def test_item_that_all_skipped_has_no_votes() -> None:
    rows = [rating(1, "skip"), rating(2, "skip", rater="ben"), rating(3, "tie", item="j")]
    assert votes_by_item(rows) == {"j": ["tie"]}


def test_rule_names_every_outcome_that_is_no_pair() -> None:
    for word in ("last rating", "skips are no votes", "ties", "both bad", "split", "never become pairs"):
        assert word in RULE
