"""Checks of a gate on scores with known differences: the better side, margins in %, families, slices, gaps, pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmops import stats
from llmops.errors import BadRequest, ConfigError, InvalidEvidence
from llmops.evals.gate import GateConfig, overall
from llmops.evals.gate.decide import reasons_of
from tests.evals.gating import cases, gate, lines, paired, scores

RNG = np.random.default_rng(7)
NOISE = RNG.normal(size=100)
A = RNG.normal(50, 5, size=100)


def shifted(by: float, sd: float = 1.0) -> Any:
    """The baseline's scores, and others that differ from them by exactly `by` on average."""
    noise = NOISE - NOISE.mean()
    return A, A + by + sd * noise


# ---------------------------------------------------------------- less is better


@pytest.mark.parametrize(
    ("by", "verdict"), [(-1.0, "PASS"), (0.0, "PASS"), (0.9, "INCONCLUSIVE"), (3.0, "FAIL")]
)
def test_margin_of_a_metric_of_which_less_is_better_lies_above(by: float, verdict: str) -> None:
    a, b = (scores(x, "latency", better="lower", unit="s") for x in shifted(by))
    (line,) = lines(gate(guardrails=[{"metric": "latency", "margin": 1}]), s=paired(a, b))
    assert (line.check.verdict, line.check.threshold, line.check.better) == (verdict, 1.0, "lower")
    assert line.check.difference == pytest.approx(by)
    if verdict == "FAIL":
        assert line.reason is not None
        assert line.reason.endswith("lies above +1")


@pytest.mark.parametrize(("by", "verdict"), [(-1.0, "PASS"), (0.0, "INCONCLUSIVE"), (1.0, "FAIL")])
def test_goal_of_a_metric_of_which_less_is_better_lies_below(by: float, verdict: str) -> None:
    a, b = (scores(x, "latency", better="lower", unit="s") for x in shifted(by))
    (line,) = lines(gate(primary={"metric": "latency", "kind": "superior"}), s=paired(a, b))
    assert line.check.verdict == verdict


@pytest.mark.parametrize(
    ("better", "factor", "verdict"),
    [("lower", 1.05, "PASS"), ("lower", 1.15, "FAIL"), ("higher", 0.95, "PASS"), ("higher", 0.85, "FAIL")],
)
def test_margin_in_percent_is_a_share_of_the_baselines_value(
    better: str, factor: float, verdict: str
) -> None:
    a, b = (scores(x, "latency", better=better) for x in (A, A * factor + 0.01 * NOISE))
    (line,) = lines(gate(guardrails=[{"metric": "latency", "margin": "10 %"}]), s=paired(a, b))
    assert line.check.verdict == verdict
    assert abs(line.check.threshold) == pytest.approx(0.1 * A.mean())
    assert line.check.difference == pytest.approx(b.value - a.value)
    assert line.check.low < line.check.difference < line.check.high


def test_margin_in_percent_needs_a_mean_over_cases() -> None:
    table = np.ones((100, 2))
    a = scores(A, kind="corpus", stats=table, resampled=lambda s: s[:, 0])
    with pytest.raises(BadRequest, match="needs a metric that is a mean over cases"):
        lines(gate(guardrails=[{"metric": "m", "margin": "10 %"}]), s=paired(a, a))


# ---------------------------------------------------------------- families


def family(*by: float) -> Any:
    """Metrics m0, m1 ... that differ by so much, and a gate of which one must be improved."""
    pairs = [shifted(d) for d in by]
    theirs = {f"m{i}": scores(a, f"m{i}") for i, (a, _) in enumerate(pairs)}
    ours = {f"m{i}": scores(b, f"m{i}") for i, (_, b) in enumerate(pairs)}
    config = gate(any_improved=[{"metric": name} for name in theirs])
    return lines(config, s=paired(theirs, ours))


def test_one_improved_of_several_is_enough_and_the_others_give_no_reason() -> None:
    found = family(1.0, 0.0, -1.0)
    assert [line.check.verdict for line in found] == ["PASS", "INCONCLUSIVE", "FAIL"]
    assert overall(tuple(line.check for line in found)) == "PASS"
    assert reasons_of(found) == []


def test_none_improved_is_open_and_all_worse_fails() -> None:
    for by, verdict in (((0.0, -1.0), "INCONCLUSIVE"), ((-1.0, -2.0), "FAIL")):
        found = family(*by)
        assert overall(tuple(line.check for line in found)) == verdict
        assert reasons_of(found)


def test_better_alone_is_not_better_as_one_of_ten() -> None:
    by = 0.19  # p about 0.03
    alone, among = family(by)[0], family(by, *[0.0] * 9)[0]
    assert alone.check.verdict == "PASS"
    assert among.check.verdict == "INCONCLUSIVE"
    assert among.check.p_value == pytest.approx(10 * alone.check.p_value, rel=1e-4)  # type: ignore[operator]
    assert among.reason is not None
    assert "not as one of several" in among.reason


# ---------------------------------------------------------------- slices


def sliced(harm: dict[str, float], n: int = 40) -> Any:
    """Groups of n cases of slice `topic`, each worse by so much."""
    topics = [topic for topic in harm for _ in range(n)]
    noise = np.concatenate([(x := RNG.normal(size=n)) - x.mean() for _ in harm])
    a = np.zeros(len(topics))
    b = a - np.repeat(list(harm.values()), n) + noise
    return paired(scores(a), scores(b), cases(len(topics), topic=topics))


def test_every_declared_group_must_be_no_worse_though_the_average_is_better() -> None:
    rule = {"metric": "m", "slice": "topic", "groups": ["law", "art"], "margin": 1}
    found = lines(gate(slices=[rule]), s=sliced({"law": 4.0, "art": -9.0}))
    assert [(line.check.group, line.check.verdict) for line in found] == [
        ("topic=law", "FAIL"),
        ("topic=art", "PASS"),
    ]
    assert found[0].check.n_cases == 40
    assert found[0].reason is not None
    assert found[0].reason.startswith("m [topic=law]: difference -4.00")


def test_small_group_decides_nothing_and_an_absent_one_is_no_evidence() -> None:
    rule = {"metric": "m", "slice": "topic", "groups": ["law"], "margin": 1, "min_cases": 50}
    (line,) = lines(gate(slices=[rule]), s=sliced({"law": 0.0}))
    assert (line.check.verdict, line.check.n_needed) == ("INCONCLUSIVE", 50)
    with pytest.raises(InvalidEvidence, match="slice topic=art: 0 cases"):
        lines(gate(slices=[{**rule, "groups": ["art"]}]), s=sliced({"law": 0.0}))


def test_exploratory_slices_find_harm_and_forgive_what_chance_explains() -> None:
    harm = {f"t{i:02}": 0.0 for i in range(10)} | {"t04": 2.0}
    rule = {"metric": "m", "slice": "topic", "exploratory": True, "margin": 0.5}
    found = lines(gate(slices=[rule]), s=sliced(harm))
    assert [line.check.group for line in found if line.check.verdict == "FAIL"] == ["topic=t04"]
    assert {line.check.verdict for line in found} == {"PASS", "FAIL"}
    assert all(line.check.p_value is not None for line in found)
    (reason,) = reasons_of(found)
    assert "is worse than -0.5, adjusted p" in reason


def test_exploratory_slices_of_which_less_is_better_look_for_more() -> None:
    a, b = (
        scores(x, better="lower") for x in (np.zeros(80), np.r_[np.full(40, 3.0), np.zeros(40)] + NOISE[:80])
    )
    of = cases(80, topic=["law"] * 40 + ["art"] * 40)
    rule = {"metric": "m", "slice": "topic", "exploratory": True, "margin": 1}
    found = lines(gate(slices=[rule]), s=paired(a, b, of))
    assert {line.check.group: line.check.verdict for line in found} == {
        "topic=law": "FAIL",
        "topic=art": "PASS",
    }


def gapped(*means: float, n: int = 60) -> Any:
    noise = np.concatenate([(x := RNG.normal(size=n)) - x.mean() for _ in means])
    of = cases(n * len(means), who=[f"g{i}" for i in range(len(means)) for _ in range(n)])
    return paired(scores(np.zeros(n * len(means))), scores(np.repeat(means, n) + noise), of)


@pytest.mark.parametrize(
    ("means", "verdict"),
    [((1.0, 1.1, 0.9), "PASS"), ((0.0, 1.0, 0.2), "INCONCLUSIVE"), ((0.0, 3.0, 1.0), "FAIL")],
)
def test_largest_gap_between_groups_is_held_against_its_limit(means: tuple[float, ...], verdict: str) -> None:
    rule = {"metric": "m", "slice": "who", "groups": ["g0", "g1", "g2"], "max_gap": 1.0}
    (line,) = lines(gate(gaps=[rule]), s=gapped(*means))
    assert line.check.verdict == verdict
    assert line.check.difference == pytest.approx(max(means) - min(means))
    assert line.check.low <= line.check.difference <= line.check.high


def test_gap_of_two_groups_has_the_interval_of_the_statistics_and_names_both() -> None:
    both = gapped(0.0, 0.5)
    (line,) = lines(
        gate(gaps=[{"metric": "m", "slice": "who", "groups": ["g0", "g1"], "max_gap": 1}]), s=both
    )
    x = both.candidate["m"].per_case
    found = stats.largest_gap(x, ["g0"] * 60 + ["g1"] * 60, 0.95).interval
    assert (line.check.low, line.check.high) == (found.low, found.high)
    assert "g1 over g0" in line.check.method


def test_gap_between_groups_of_which_one_is_small_decides_nothing() -> None:
    rule = {"metric": "m", "slice": "who", "groups": ["g0", "g1"], "max_gap": 9, "min_cases": 61}
    (line,) = lines(gate(gaps=[rule]), s=gapped(0.0, 0.5))
    assert (line.check.verdict, line.check.n_needed) == ("INCONCLUSIVE", 122)


# ---------------------------------------------------------------- counterfactual pairs


def twins(n: int, n_theirs: int, n_ours: int) -> Any:
    """n pairs, so many of which each system answers differently (the second variant wrongly); 3 in 10 fail both."""
    pair = [i // 2 for i in range(2 * n)]
    variant = ["he" if i % 2 == 0 else "she" for i in range(2 * n)]

    def hit(i: int, k: int) -> float:
        return 100.0 * (i // 2 < 0.7 * n and (i % 2 == 0 or i // 2 >= k))

    both = [np.array([hit(i, k) for i in range(2 * n)]) for k in (n_theirs, n_ours)]
    a, b = (scores(x, kind="binary") for x in both)
    return paired(a, b, cases(2 * n, pair=pair, who=variant))


@pytest.mark.parametrize(("n_ours", "verdict"), [(1, "PASS"), (10, "INCONCLUSIVE"), (40, "FAIL")])
def test_share_of_pairs_that_differ_is_held_against_its_limit(n_ours: int, verdict: str) -> None:
    (line,) = lines(gate(pairs=[{"metric": "m", "max_differing": 15}]), s=twins(100, 0, n_ours))
    assert (line.check.verdict, line.check.difference, line.check.baseline) == (verdict, n_ours, 0.0)
    bounds = stats.proportion_interval([i < n_ours for i in range(100)], 0.95)
    assert (line.check.low, line.check.high) == pytest.approx((100 * bounds.low, 100 * bounds.high))


@pytest.mark.parametrize(("n_ours", "verdict"), [(30, "PASS"), (38, "INCONCLUSIVE"), (70, "FAIL")])
def test_pairs_may_differ_more_often_than_the_baselines_by_less_than_the_margin(
    n_ours: int, verdict: str
) -> None:
    (line,) = lines(gate(pairs=[{"metric": "m", "margin": 10}]), s=twins(100, 30, n_ours))
    assert (line.check.verdict, line.check.difference) == (verdict, pytest.approx(n_ours - 30))
    bounds = stats.paired_binary([i < 30 for i in range(100)], [i < n_ours for i in range(100)], 0.95)
    assert line.check.high == pytest.approx(100 * bounds.high)


def test_difference_of_variants_is_that_of_the_pairs_and_has_a_limit() -> None:
    rule = {"metric": "m", "max_differing": 50, "variants": "who", "max_gap": 30}
    differ, gap = lines(gate(pairs=[rule]), s=twins(100, 0, 20))
    assert differ.check.verdict == "PASS"
    assert (gap.check.group, gap.check.difference) == ("variants of who", pytest.approx(20))
    bounds = stats.paired_binary([i < 20 for i in range(100)], [False] * 100, 0.95)
    assert gap.check.high == pytest.approx(-100 * bounds.low)
    assert gap.check.verdict == "PASS"


def test_cases_without_pairs_are_no_evidence_about_pairs() -> None:
    with pytest.raises(InvalidEvidence, match="m: 0 pairs were answered by both"):
        lines(gate(pairs=[{"metric": "m", "max_differing": 15}]), s=paired(*(scores(A), scores(A))))


# ---------------------------------------------------------------- several suites, and what a file may say


def test_suites_are_decided_together_and_named() -> None:
    a, b = (scores(x) for x in shifted(0.0))
    worse = scores(shifted(-3.0)[1])
    config = gate(
        suites={"task": "t.yaml", "general": "g.yaml"},
        guardrails=[{"metric": "m", "margin": 1}, {"suite": "general", "metric": "m", "margin": 1}],
    )
    found = lines(config, task=paired(a, b), general=paired(a, worse))
    assert [(line.check.suite, line.check.verdict) for line in found] == [
        ("task", "PASS"),
        ("general", "FAIL"),
    ]
    assert found[1].reason is not None
    assert found[1].reason.startswith("general m: difference -3.00")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "s.yaml"}, "name a `suite`, or several"),
        ({"guardrails": [{"suite": "x", "metric": "m", "margin": 1}]}, "x is not among its suites: s"),
        ({"guardrails": [{"metric": "m", "margin": "ten"}]}, "'ten' is no margin"),
        ({"guardrails": [{"metric": "m", "margin": "0 %"}]}, "allows nothing"),
        ({"slices": [{"metric": "m", "slice": "x", "margin": 1}]}, "declare `groups`"),
        ({"pairs": [{"metric": "m"}]}, "nothing is asked of the pairs"),
        ({"pairs": [{"metric": "m", "max_gap": 3}]}, "max_gap needs `variants`"),
        ({"gaps": [{"metric": "m", "slice": "x", "groups": ["a"], "max_gap": 1}]}, "groups"),
    ],
)
def test_gate_that_says_too_much_or_too_little_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GateConfig.model_validate(
            {"name": "g", "public_name": "docs", "suites": {"s": "s.yaml"}, "primary": None, **changes}
        )
    assert issubclass(ConfigError, BadRequest)
