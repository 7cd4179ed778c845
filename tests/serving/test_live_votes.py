"""What the controller makes of live votes and figures: closed forms, and what missing data must not do."""

from __future__ import annotations

import random
from functools import cache

import pytest

from llmops.records import ArmFigures, LiveVote, Rollout, RolloutArm, SloRule, VoteRule
from llmops.serving.rollout.verdict import comparisons, errors_held, judge_votes, look_at, waits_held
from llmops.stats import look_level, win_rate

RULE = VoteRule(looks=(20, 40), margin=0.1, alpha=0.05)
SLO = SloRule(min_requests=50, max_error_share=0.02, ttft_p95_ms=500)


def votes(*said: tuple[str, float], n_raters: int = 1000) -> list[LiveVote]:
    return [LiveVote(i, model, worth, f"r{i % n_raters}") for i, (model, worth) in enumerate(said)]


def rollout(n_steps: int = 2) -> Rollout:
    steps = tuple(0.1 * (i + 1) for i in range(n_steps))
    return Rollout(
        "docs",
        "canary",
        (RolloutArm("canary", "c"),),
        "h",
        steps,
        RULE,
        SLO,
        None,
        None,
        None,
        "me",
        1,
        "0",
        "now",
    )


def test_single_votes_are_paired_off_in_their_order_and_direct_ones_stand_alone() -> None:
    said = [("c", 1.0), ("c", 0.0), ("h", 0.0), ("x", 1.0), ("h", 0.0), ("h", 1.0)]
    given = [*votes(*said), LiveVote(9, "h", 1.0, "z", against="c"), LiveVote(10, "c", 0.5, "z", against="h")]
    assert [c.worth for c in comparisons(given, "c", "h")] == [1.0, 0.5, 0.0, 0.5]
    assert comparisons([LiveVote(1, "c", 1.0, "z", against="x")], "c", "h") == []


def test_look_counts_exactly_the_declared_comparisons_at_the_declared_level() -> None:
    said = comparisons(votes(*[(m, w) for _ in range(39) for m, w in (("c", 1.0), ("h", 0.0))]), "c", "h")
    assert look_at(RULE, said[:19]) is None
    found = look_at(RULE, said)
    assert found is not None
    expected = win_rate([1.0] * 20, look_level((0.5, 1.0), 1, 0.05))
    assert (found.look, found.n_votes, found.low) == (0, 20, expected.low)
    assert (found.level, found.verdict) == (expected.level, "PASS")


def test_two_people_decide_nothing_however_often_they_vote() -> None:
    said = votes(*[(m, float(m == "h")) for _ in range(40) for m in ("c", "h")], n_raters=4)
    found = look_at(RULE, comparisons(said, "c", "h"))
    assert found is not None
    assert (found.n_losses, found.verdict) == (40, "INCONCLUSIVE")
    assert judge_votes(rollout(), 0, found) is None


@pytest.mark.parametrize(
    ("step", "n", "action"), [(0, 20, "raise"), (1, 20, None), (1, 40, "ready"), (0, 40, "raise")]
)
def test_step_is_left_at_its_own_look_or_a_later_one(step: int, n: int, action: str | None) -> None:
    said = comparisons(votes(*[(m, float(m == "c")) for _ in range(n) for m in ("c", "h")]), "c", "h")
    found = judge_votes(rollout(), step, look_at(RULE, said))
    assert (found.action if found else None) == action


def figures(n: int, n_bad: int, arm: str = "canary") -> ArmFigures:
    return ArmFigures(arm, n, n_bad, n, n_bad, 1.0)


@pytest.mark.parametrize(
    ("canary", "champion", "said"),
    [
        ((49, 49), (50, 0), None),  # too few to say anything, however bad
        ((50, 50), (49, 0), None),  # nothing to compare with
        ((50, 1), (50, 0), "held"),
        ((50, 2), (50, 0), "open"),  # over the limit, within chance
        ((50, 10), (50, 0), "breached"),
        ((50, 10), (50, 10), "open"),  # the engine's trouble, not the canary's
    ],
)
def test_window_is_judged_with_enough_of_both_arms_alone(
    canary: tuple[int, int], champion: tuple[int, int], said: str | None
) -> None:
    assert errors_held(SLO, figures(*canary), figures(*champion, "champion")) == said


def test_slow_streams_are_held_against_five_percent() -> None:
    assert waits_held(SLO, figures(100, 5), figures(100, 0, "champion")) == "held"
    assert waits_held(SLO, figures(100, 20), figures(100, 1, "champion")) == "breached"


@pytest.mark.stats
@pytest.mark.parametrize(("liked", "wrong"), [(0.3, "PASS"), (0.5, "FAIL")])
def test_looks_at_live_votes_keep_their_error(liked: float, wrong: str) -> None:
    """Thumbs on a champion that half its users like, and on a canary that `liked` of its users like: a win rate of
    1/2 + (liked - 1/2) / 2. At 0.4, the margin, it passes at one look or another in at most 5 % of rollouts; an even
    one is aborted in at most 5 %."""
    source, n_runs = random.Random(11), 10_000
    rule = VoteRule(looks=(40, 80, 160), margin=0.1, alpha=0.05)

    @cache
    def verdict(n: int, n_won: int, n_lost: int) -> str:
        """What a look says follows from its counts, whatever the order of the votes."""
        pairs = [(1.0, 0.0)] * n_won + [(0.0, 1.0)] * n_lost + [(1.0, 1.0)] * (n - n_won - n_lost)
        said = [vote for ours, theirs in pairs for vote in (("c", ours), ("h", theirs))]
        found = look_at(rule, comparisons(votes(*said), "c", "h"))
        assert found is not None
        return found.verdict

    n_wrong = 0
    for _ in range(n_runs):
        pairs = [(source.random() < liked) - (source.random() < 0.5) for _ in range(160)]
        looks = (verdict(n, pairs[:n].count(1), pairs[:n].count(-1)) for n in rule.looks)
        n_wrong += wrong in looks
    assert n_wrong / n_runs <= 0.05 + 3 * (0.05 * 0.95 / n_runs) ** 0.5
