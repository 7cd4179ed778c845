"""How many questions are under way: as many as the endpoint is the faster for, and no more."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from llmops.evals.pace import FIRST, MOST, Climb, Pace


def climbed(n_windows: int, rate_at, overloaded_above: int = 10**9, climb: Climb | None = None) -> Climb:  # type: ignore[no-untyped-def]
    """A climb after windows of an endpoint whose rate at a limit is known."""
    climb = climb or Climb()
    for _ in range(n_windows):
        climb.window(rate_at(climb.limit), climb.limit > overloaded_above, slow=False)
    return climb


@pytest.mark.parametrize(("capacity", "least", "most"), [(4, 4, 6), (24, 19, 30), (100, 80, 128)])
def test_growing_ends_where_throughput_does(capacity: int, least: int, most: int) -> None:
    found = climbed(200, lambda limit: min(limit, capacity))
    assert least <= found.limit <= most


def test_doubling_reaches_the_cap_in_as_many_windows_as_there_are_doublings() -> None:
    assert climbed(4, lambda limit: limit).limit == MOST == FIRST * 2**4


def test_at_the_cap_a_step_down_is_tried_now_and_then_and_taken_back() -> None:
    climb = climbed(4, lambda limit: limit)
    seen = []
    for _ in range(200):
        seen.append(climb.limit)
        climb.window(climb.limit, overloaded=False, slow=False)
    assert set(seen) == {MOST, MOST - MOST // 5}
    assert seen.count(MOST) >= 0.8 * len(seen)


def test_overload_halves_and_what_was_too_much_is_come_near_again_by_single_steps() -> None:
    climb = Climb()
    seen = []
    for _ in range(120):
        seen.append(climb.limit)
        climb.window(climb.limit, overloaded=climb.limit > 60, slow=False)
    first = seen.index(64)
    assert seen[first + 1] == 32
    assert all(b <= a * 1.25 + 1 for a, b in zip(seen[first + 1 :], seen[first + 2 :], strict=False))
    assert max(seen[first + 1 :]) <= 75
    assert seen[-1] >= 30


def test_slow_answers_end_the_growth_and_lower_what_is_too_much() -> None:
    climb = Climb()
    seen = []
    for _ in range(50):
        climb.window(climb.limit, overloaded=False, slow=climb.limit >= 32)
        seen.append(climb.limit)
    assert max(seen) < 40
    assert seen[-1] < 32


def test_endpoint_that_grows_faster_later_is_found_out() -> None:
    climb = climbed(20, lambda limit: min(limit, 16))
    assert climb.limit < 32
    assert climbed(200, lambda limit: min(limit, 80), climb=climb).limit >= 64


def test_chance_drives_the_number_neither_up_nor_down() -> None:
    """Rates that are off by a tenth, of an endpoint with 32 places: up alone was a walk to the cap."""
    for seed in range(20):
        draw = random.Random(seed)
        found = climbed(400, lambda limit, draw=draw: min(limit, 32) * draw.uniform(0.9, 1.1))
        assert 16 <= found.limit <= 64, seed


def test_fixed_number_stays_whatever_happens() -> None:
    climb = Climb(3)
    climb.window(100.0, overloaded=True, slow=True)
    assert climb.limit == 3


@dataclass
class Row:
    """An answer that an engine works on."""

    entered: float
    n_tokens: int
    n_left: int


def served(pace: Pace, clock: list[float], lengths: Sequence[int], places: int) -> tuple[float, float]:
    """How long an engine of so many places takes for answers of those lengths, and how many were let in on average.

    A step takes 60 ms and 7 ms a row, and gives each row a token; who finds no place waits for the next that is free.
    """
    waiting, running, let_in = [], [], 0.0
    left = list(reversed(lengths))
    while left or waiting or running:
        while left and pace.n_running < pace.climb.limit:
            pace.n_running += 1
            n_tokens = left.pop()
            waiting.append(Row(clock[0], n_tokens, n_tokens))
        while waiting and len(running) < places:
            running.append(waiting.pop(0))
        took = 0.06 + 0.007 * len(running)
        clock[0] += took
        let_in += took * pace.climb.limit
        for row in running:
            row.n_left -= 1
        done, running = [r for r in running if not r.n_left], [r for r in running if r.n_left]
        for row in done:
            pace.leave(1 + row.n_tokens, row.entered, 0)
    return clock[0], let_in / clock[0]


@pytest.mark.parametrize("places", [16, 32, 64])
@pytest.mark.parametrize("longest", [(64,), (4, 60, 120, 200)], ids=["one suite", "suites of mixed lengths"])
def test_an_engine_of_few_places_is_kept_busy_and_not_swamped(places: int, longest: tuple[int, ...]) -> None:
    """Within 4 % of the throughput at its own number of places, with at most 35 % more under way than it has."""
    for seed in range(3):
        draw = random.Random(seed)
        lengths = [draw.randint(most // 2, most) for most in draw.choices(longest, k=1200)]
        took = {}
        for name, climb in (("places", Climb(places)), ("auto", Climb())):
            clock = [0.0]
            took[name] = served(Pace(climb, 1e9, lambda clock=clock: clock[0]), clock, lengths, places)
        assert took["places"][0] / took["auto"][0] >= 0.96
        assert took["auto"][1] <= 1.35 * places


async def test_a_question_enters_when_one_before_it_has_left() -> None:
    import asyncio

    pace = Pace(Climb(2), slow_s=10)
    first = await pace.enter()
    await pace.enter()
    third = asyncio.create_task(pace.enter())
    await asyncio.sleep(0)
    assert not third.done()
    pace.leave(1, first, 0)
    await third
    assert pace.n_running == 2


async def test_answers_asked_before_the_limit_changed_or_just_after_it_are_not_measured() -> None:
    now = 0.0
    pace = Pace(Climb(), slow_s=10, clock=lambda: now)

    async def answered(n: int, seconds: float) -> None:
        """So many questions, one after another let in at once and answered after `seconds`."""
        nonlocal now
        entered = [await pace.enter() for _ in range(n)]
        now += seconds
        for at in entered:
            pace.leave(1, at, 0)

    early = [await pace.enter() for _ in range(FIRST // 2)]
    now = 1.0
    for at in early:
        pace.leave(1, at, 0)
    await answered(FIRST // 2, 1.0)
    assert (pace.n_running, pace.climb.limit) == (0, 2 * FIRST)
    await answered(
        2 * FIRST, 0.5
    )  # asked within half of the second that an answer took: as fast as you like, not measured
    assert pace.climb.limit == 2 * FIRST
    now += 0.1
    await answered(2 * FIRST, 2.0)  # twice as many in twice the time: the doubling brought nothing
    assert pace.climb.limit == FIRST


async def test_one_burst_of_refusals_halves_once_and_one_after_growing_at_once() -> None:
    now = 0.0
    pace = Pace(Climb(), slow_s=10, clock=lambda: now)
    entered = [await pace.enter() for _ in range(FIRST)]
    for at in entered:
        now += 0.1
        pace.leave(1, at, 0)
    assert pace.climb.limit == 2 * FIRST
    entered = [await pace.enter() for _ in range(2 * FIRST)]
    pace.leave(1, entered[0], 1)  # the doubled load is refused: no window is waited for
    assert pace.climb.limit == FIRST
    for n_refused in range(2, FIRST):  # as is what was asked in the same breath
        pace.leave(1, entered[n_refused], n_refused)
    assert pace.climb.limit == FIRST
