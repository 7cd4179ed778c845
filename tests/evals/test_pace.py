"""How many questions are under way: as many as the endpoint is the faster for, and no more."""

from __future__ import annotations

import pytest

from llmops.evals.pace import FIRST, MOST, Climb, Pace


def climbed(n_windows: int, rate_at, overloaded_above: int = 10**9, climb: Climb | None = None) -> Climb:  # type: ignore[no-untyped-def]
    """A climb after windows of an endpoint whose rate at a limit is known."""
    climb = climb or Climb()
    for _ in range(n_windows):
        climb.window(rate_at(climb.limit), climb.limit > overloaded_above, slow=False)
    return climb


@pytest.mark.parametrize(
    ("capacity", "least", "most"), [(4, 8, 8), (24, 16, 40), (100, 64, 160), (10**6, MOST, MOST)]
)
def test_growing_ends_where_throughput_does(capacity: int, least: int, most: int) -> None:
    found = climbed(200, lambda limit: min(limit, capacity))
    assert least <= found.limit <= most


def test_doubling_reaches_the_cap_in_as_many_windows_as_there_are_doublings() -> None:
    assert climbed(5, lambda limit: limit).limit == MOST == FIRST * 2**5


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


def test_slow_answers_end_the_growth() -> None:
    climb = Climb()
    for _ in range(50):
        climb.window(climb.limit, overloaded=False, slow=climb.limit >= 32)
    assert climb.limit <= 32


def test_endpoint_that_grows_faster_later_is_found_out() -> None:
    climb = climbed(20, lambda limit: min(limit, 16))
    assert climb.limit < 32
    assert climbed(200, lambda limit: min(limit, 80), climb=climb).limit >= 64


def test_fixed_number_stays_whatever_happens() -> None:
    climb = Climb(3)
    climb.window(100.0, overloaded=True, slow=True)
    assert climb.limit == 3


async def test_pace_measures_a_window_of_answers_asked_at_the_same_limit() -> None:
    now = 0.0
    pace = Pace(Climb(), slow_s=10, clock=lambda: now)
    for _ in range(FIRST):
        await pace.enter()
    for _ in range(FIRST):
        now += 0.1
        pace.leave(1, 0.8, 0)
    assert (pace.n_running, pace.climb.limit) == (0, 2 * FIRST)
    for _ in range(FIRST):  # asked under the old limit: not measured
        await pace.enter()
        pace.leave(1, 0.8, 0)
    for _ in range(2 * FIRST):
        await pace.enter()
        now += 0.1  # as fast as before: the doubling brought nothing
        pace.leave(1, 1.6, 0)
    assert pace.climb.limit == FIRST


async def test_one_burst_of_refusals_halves_once_and_one_after_growing_at_once() -> None:
    now = 0.0
    pace = Pace(Climb(), slow_s=10, clock=lambda: now)
    for _ in range(FIRST):
        await pace.enter()
    for _ in range(FIRST):
        now += 0.1
        pace.leave(1, 0.8, 0)
    assert pace.climb.limit == 2 * FIRST
    for _ in range(2 * FIRST):
        await pace.enter()
    pace.leave(1, 0.8, 1)  # the doubled load is refused: no window is waited for
    assert pace.climb.limit == FIRST
    for n_refused in range(2, FIRST):  # as is what was asked in the same breath
        pace.leave(1, 0.8, n_refused)
    assert pace.climb.limit == FIRST
