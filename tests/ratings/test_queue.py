"""The next item is the one whose vote brings the gate's decision nearest, as an exhaustive search finds it."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from llmops.ratings.queue import (
    REPEAT_AFTER,
    Need,
    Turnout,
    is_gold_due,
    next_item,
    next_look,
    repeat_for,
    votes_to_look,
)
from llmops.records import Item, Message, VotePlan

PLAN = VotePlan((20, 40), 20, 1, None, "superior", 0.0, 0.95, 0.8)
SOME = Turnout(5, True)


def needs_of(states: list[tuple[int, int]]) -> list[Need]:
    """Items by (votes needed, votes there)."""
    return [Need(str(i), f"g{i}", needed, load) for i, (needed, load) in enumerate(states)]


def searched(states: tuple[tuple[int, int], ...], n_full: int, n_double: int) -> int:
    """The fewest votes until so many items are full and so many of them have two votes or more: by trying all."""

    @cache
    def least(state: tuple[tuple[int, int], ...]) -> int:
        full = [needed for needed, load in state if load >= needed]
        if len(full) >= n_full and sum(needed > 1 for needed in full) >= n_double:
            return 0
        found = [10**6]
        for i, (needed, load) in enumerate(state):
            if load < needed:
                found.append(1 + least((*state[:i], (needed, load + 1), *state[i + 1 :])))
        return min(found)

    return least(states)


@pytest.mark.parametrize("agreement", [None, 1, 2])
def test_chosen_item_lies_on_a_shortest_way_to_the_next_look(agreement: int | None) -> None:
    draw = random.Random(3)
    n_checked = 0
    for _ in range(120):
        states = [(needed := draw.choice([1, 1, 2, 3]), draw.randint(0, needed)) for _ in range(5)]
        look = draw.randint(2, 4)
        plan = replace(PLAN, looks=(look, 5), min_items=2, agreement_items=agreement)
        needs = needs_of(states)
        if sum(n.n_needed > 1 for n in needs) < (agreement or 0) or not any(n.lacks for n in needs):
            continue
        n_full = sum(not n.lacks for n in needs)
        target = next_look(n_full, plan)
        assert target is not None or n_full == 5
        if target is None:
            continue
        before = searched(tuple(states), target, agreement or 0)
        assert votes_to_look(needs, plan) == before
        chosen = next_item(needs, plan, SOME)
        assert chosen is not None
        i = int(chosen)
        after = [(n, load + (j == i)) for j, (n, load) in enumerate(states)]
        assert searched(tuple(after), target, agreement or 0) == before - 1
        n_checked += 1
    assert n_checked > 60


def test_looks_are_reached_with_a_third_of_the_votes_that_breadth_first_needs() -> None:
    """60 items of three votes, first look at 20: 60 votes, where asking the least voted first needs 141."""

    def votes_until_look(plan: VotePlan | None) -> int:
        votes: Counter[int] = Counter()
        for n in itertools.count(1):
            needs = needs_of([(3, votes[i]) for i in range(60)])
            votes[int(str(next_item(needs, plan, SOME)))] += 1
            if sum(v >= 3 for v in votes.values()) == 20:
                return n
        raise AssertionError

    assert votes_until_look(replace(PLAN, looks=(20, 60))) == 60
    assert votes_until_look(None) == 60 * 2 + 20


def test_without_looks_votes_lie_on_as_many_items_as_possible() -> None:
    """At any moment: the design effect of clusters of equal size is the least there is for that many votes."""
    plan, votes = replace(PLAN, looks=()), Counter[str]()
    for n in range(1, 25):
        needs = [Need(str(i), "g", 3, votes[str(i)]) for i in range(8)]
        votes[str(next_item(needs, plan, SOME))] += 1
        sizes = [votes[str(i)] for i in range(8)]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == n


def test_groups_of_prompts_are_asked_in_turn() -> None:
    plan, load = replace(PLAN, looks=(4, 8)), Counter[str]()
    groups = ["a"] * 4 + ["b"] * 2 + ["c"] * 2
    asked = []
    for _ in range(8):
        needs = [Need(str(i), g, 1, load[str(i)]) for i, g in enumerate(groups)]
        chosen = str(next_item(needs, plan, SOME))
        load[chosen] += 1
        asked.append(groups[int(chosen)])
    assert [set(asked[i : i + 3]) for i in (0, 3)] == [{"a", "b", "c"}] * 2
    assert Counter(asked) == Counter(groups)


def test_what_is_being_rated_counts_as_rated_and_own_answers_are_not_asked_again() -> None:
    needs = [Need("0", "g", 1, 1), Need("1", "g", 2, 1, is_mine=True), Need("2", "g", 2, 0)]
    assert next_item(needs, replace(PLAN, looks=(2, 3), min_items=2), SOME) == "2"
    assert next_item(needs[:2], PLAN, SOME) is None


def test_last_items_are_left_to_people_the_gate_still_has_to_hear() -> None:
    plan = replace(PLAN, looks=(), min_raters=3)
    needs = needs_of([(1, 1)] * 8 + [(1, 0)] * 2)
    assert next_item(needs, plan, Turnout(1, True)) is None
    assert next_item(needs, plan, Turnout(1, False)) == "8"
    assert next_item(needs_of([(1, 0)] * 3), plan, Turnout(1, True)) == "0"
    assert next_item(needs, plan, Turnout(3, True)) == "8"


def test_looks_that_may_not_decide_are_passed_over() -> None:
    plan = replace(PLAN, looks=(10, 20, 40), min_items=20)
    assert [next_look(n, plan) for n in (0, 9, 19, 20, 39, 40)] == [20, 20, 20, 40, 40, None]
    assert votes_to_look(needs_of([(1, 1)] * 40), plan) is None


def test_one_item_in_each_block_is_gold_at_a_place_that_is_drawn() -> None:
    places = []
    for block in range(400):
        due = [n for n in range(10) if is_gold_due(10, "seed", 10 * block + n)]
        assert len(due) == 1
        places += due
    counts = Counter(places)
    assert set(counts) == set(range(10))
    # Chi-square with 9 degrees of freedom is over 27.9 once in 1,000 fair draws.
    assert sum((counts[i] - 40) ** 2 / 40 for i in range(10)) < 27.9
    assert not any(is_gold_due(0, "seed", n) for n in range(50))


def test_repeat_comes_after_others_and_never_behind_another() -> None:
    item = Item((Message("user", "q"),), ("a", "b"), "g", "s")
    repeats = [replace(item, source=str(i), repeat_of=f"first {i}") for i in range(2)]
    repeats[1] = replace(repeats[1], answers=("c", "d"))
    by_digest = {repeat.digest: repeat for repeat in repeats}
    answered = ["first 0", "first 1", *(f"x{i}" for i in range(REPEAT_AFTER - 1))]
    assert repeat_for(by_digest, answered) == repeats[0]
    assert repeat_for(by_digest, answered[:-1]) is None
    later = [*answered, repeats[0].digest]
    assert repeat_for(by_digest, later) is None
    assert repeat_for(by_digest, [*later, "y"]) == repeats[1]
    assert repeat_for(by_digest, [*later, "y", repeats[1].digest, "z"]) is None
    assert repeat_for(by_digest, []) is None
