"""Checks on parts of a suite: declared and exploratory slices, gaps between groups, and counterfactual pairs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from llmops import stats
from llmops.errors import InvalidEvidence
from llmops.evals.gate.config import GapRule, PairRule, SliceRule
from llmops.evals.gate.lines import Line, Question, Seen, decided
from llmops.evals.gate.metric_checks import Comparisons, margin_interval, margin_line
from llmops.records import Verdict

if TYPE_CHECKING:
    from llmops.evals.compare import Paired
    from llmops.evals.metrics import Scores
    from llmops.stats import FloatArray, Interval


def part_lines(about: Comparisons) -> list[Line]:
    """Every check of the gate on parts of its suites.

    Raises:
        InvalidEvidence: the cases have no such slice, group or pairs.
    """
    lines = slice_lines(about) + [_gap_line(about, rule) for rule in about.gate.gaps]
    return lines + [line for rule in about.gate.pairs for line in _pair_lines(about, rule)]


def slice_lines(about: Comparisons) -> list[Line]:
    """Every check of the gate on declared and exploratory slices.

    Raises:
        InvalidEvidence: the cases have no such slice or group.
    """
    declared = [rule for rule in about.gate.slices if not rule.exploratory]
    lines = [_slice_line(about, rule, group) for rule in declared for group in rule.groups]
    return lines + _exploratory_lines(about, [rule for rule in about.gate.slices if rule.exploratory])


def groups_of(paired: Paired, key: str) -> dict[str, list[int]]:
    """Which cases have which value of a slice, by value."""
    found: dict[str, list[int]] = defaultdict(list)
    for i, case in enumerate(paired.cases):
        if key in case.slices:
            found[case.slices[key]].append(i)
    return dict(sorted(found.items()))


def _rows(paired: Paired, key: str, group: str) -> list[int]:
    rows = groups_of(paired, key).get(group, [])
    if len(rows) < 2:
        raise InvalidEvidence(
            f"slice {key}={group}: {len(rows)} cases were answered by both; add cases to the suite"
        )
    return rows


def _slice_line(about: Comparisons, rule: SliceRule, group: str) -> Line:
    paired, _ = about.of(rule)
    part = paired.only(_rows(paired, rule.slice, group))
    question = about.question(rule, "slice", "non_inferior", 0.0)
    question = replace(question, group=f"{rule.slice}={group}", min_cases=rule.min_cases)
    return margin_line(question, part, rule)


# ---------------------------------------------------------------- exploratory slices


@dataclass(frozen=True)
class _Searched:
    """One group that was found, what is measured there, and the p-value of its being worse than the margin."""

    line: Line
    p: float


def _exploratory_lines(about: Comparisons, rules: Sequence[SliceRule]) -> list[Line]:
    """Groups that are shown to be worse than the margin fail: Benjamini-Hochberg over all groups of all rules."""
    searched = [found for rule in rules for found in _searched(about, rule)]
    if not searched:
        return []
    alpha = 1 - about.gate.level
    adjusted = [float(p) for p in stats.benjamini_hochberg([found.p for found in searched])]
    return [
        _verdict_of(found.line, p, alpha, len(searched)) for found, p in zip(searched, adjusted, strict=True)
    ]


def _searched(about: Comparisons, rule: SliceRule) -> list[_Searched]:
    paired, scores = about.of(rule)
    groups = groups_of(paired, rule.slice)
    if not groups:
        raise InvalidEvidence(f"slice {rule.slice}: no case has it; declare slices in the suite's cases")
    found = []
    for group, rows in groups.items():
        if len(rows) < rule.min_cases:
            continue
        part = paired.only(rows)
        question = about.question(rule, "exploratory", "not_worse", 0.0)
        question = replace(question, group=f"{rule.slice}={group}", min_cases=rule.min_cases)
        higher = scores.better == "higher"
        margin = margin_interval(part, rule, question.level)[1]
        harm = stats.p_value(_harm(part, rule, higher), margin)
        found.append(_Searched(margin_line(question, part, rule), harm))
    return found


def _harm(part: Paired, rule: SliceRule, higher: bool) -> Callable[[float], Interval]:
    """The interval, at a level, of how much worse the candidate is."""

    def at(level: float) -> Interval:
        found = margin_interval(part, rule, level)[0]
        return found.mirrored() if higher else found

    return at


def _verdict_of(line: Line, p: float, alpha: float, n_groups: int) -> Line:
    verdict: Verdict = "FAIL" if p <= alpha else "PASS"
    method = f"{line.check.method}; search for harm, Benjamini-Hochberg over {n_groups}"
    check = replace(line.check, verdict=verdict, n_needed=None, p_value=p, method=method)
    if verdict == "PASS":
        return replace(line, check=check, reason=None)
    numbers = f"difference {check.difference:+.2f} [{check.low:+.2f}, {check.high:+.2f}]"
    reason = (
        f"{check.metric} [{check.group}]: {numbers} is worse than {check.threshold:+g}, adjusted p {p:.3g}"
    )
    return replace(line, check=check, reason=reason)


# ---------------------------------------------------------------- gaps


def _gap_line(about: Comparisons, rule: GapRule) -> Line:
    paired, scores = about.of(rule)
    rows = {group: _rows(paired, rule.slice, group) for group in rule.groups}
    places = [i for of in rows.values() for i in of]
    clusters = None if paired.clusters is None else [paired.clusters[i] for i in places]
    labels = [group for group, of in rows.items() for _ in of]
    question = about.question(rule, "gap", "at_most", -rule.max_gap)
    question = replace(question, group=f"largest gap over {rule.slice}", min_cases=rule.min_cases)
    spread = _Spread(places, labels, clusters)
    return _spread_line(question, spread, scores, paired.baseline[rule.metric])


@dataclass(frozen=True)
class _Spread:
    """Which cases are compared, the group of each, and its cluster (None: cases are independent)."""

    rows: list[int]
    groups: list[str]
    clusters: list[str] | None


def _spread_line(question: Question, spread: _Spread, ours: Scores, theirs: Scores) -> Line:
    """The candidate's largest gap between two groups against its limit; beside it the baseline's."""
    found, before = (
        stats.largest_gap(of.per_case[spread.rows], spread.groups, question.level, spread.clusters)
        for of in (ours, theirs)
    )
    smallest = min(spread.groups.count(group) for group in set(spread.groups))
    floor = math.ceil(len(spread.rows) * question.min_cases / smallest)
    method = f"{found.interval.method}: {found.highest} over {found.lowest}; {ours.signature}"
    seen = Seen(found.interval, found.interval.estimate, before.interval.estimate, method)
    return decided(replace(question, better="lower", min_cases=floor), seen)


# ---------------------------------------------------------------- counterfactual pairs


def _pair_lines(about: Comparisons, rule: PairRule) -> list[Line]:
    paired, scores = about.of(rule)
    members: dict[str, list[int]] = defaultdict(list)
    for i, case in enumerate(paired.cases):
        if case.pair is not None:
            members[case.pair].append(i)
    pairs = [rows for rows in members.values() if len(rows) > 1]
    if len(pairs) < 2:
        raise InvalidEvidence(
            f"{rule.metric}: {len(pairs)} pairs were answered by both; give cases the same `pair`"
        )
    theirs = paired.baseline[rule.metric]
    lines = _differing_lines(about, rule, _differ(scores, pairs), _differ(theirs, pairs))
    if rule.max_gap is not None and rule.variants is not None:
        lines.append(_variants_line(about, rule, pairs))
    return lines


def _differ(scores: Scores, pairs: Sequence[Sequence[int]]) -> FloatArray:
    """1 for each pair whose scores differ, else 0."""
    return np.array([float(np.ptp(scores.per_case[list(rows)]) > 1e-9) for rows in pairs])


def _differing_lines(about: Comparisons, rule: PairRule, ours: FloatArray, theirs: FloatArray) -> list[Line]:
    gate, lines = about.gate, []
    question = about.question(rule, "pair", "at_most", 0.0)
    question = replace(
        question, better="lower", unit="points", group="pairs that differ", min_cases=rule.min_cases
    )
    values = (100 * float(ours.mean()), 100 * float(theirs.mean()))
    if rule.max_differing is not None:
        share = stats.proportion_interval(ours, gate.level).scaled(100)
        asked = replace(question, threshold=-rule.max_differing)
        lines.append(decided(asked, Seen(share, *values, f"{share.method} of {len(ours)} pairs")))
    if rule.margin is not None:
        found = stats.paired_binary(theirs, ours, gate.level).scaled(100)
        asked = replace(question, kind="non_inferior", threshold=-rule.margin)
        lines.append(decided(asked, Seen(found, *values, f"{found.method} of {len(ours)} pairs")))
    return lines


def _variants_line(about: Comparisons, rule: PairRule, pairs: Sequence[Sequence[int]]) -> Line:
    """The largest difference of two variants' mean scores, each over the pairs that have both."""
    paired, scores = about.of(rule)
    key = str(rule.variants)
    rows = [
        {paired.cases[i].slices[key]: i for i in members if key in paired.cases[i].slices}
        for members in pairs
    ]
    variants = sorted({name for row in rows for name in row})
    if len(variants) < 2:
        raise InvalidEvidence(f"slice {key}: {len(variants)} variants among the pairs; there must be two")
    question = about.question(rule, "pair", "at_most", -float(rule.max_gap or 0))
    question = replace(question, better="lower", group=f"variants of {key}", min_cases=rule.min_cases)
    ours, theirs = (
        _largest(question.level, [_between(of, rows, a, b) for a, b in combinations(variants, 2)])
        for of in (scores, paired.baseline[rule.metric])
    )
    method = f"{ours.method}, {len(variants)} variants; {scores.signature}"
    return decided(question, Seen(ours, ours.estimate, theirs.estimate, method))


def _between(scores: Scores, rows: Sequence[dict[str, int]], a: str, b: str) -> Callable[[float], Interval]:
    """The paired difference of two variants at a level of each bound."""
    both = [(row[a], row[b]) for row in rows if a in row and b in row]
    if len(both) < 2:
        raise InvalidEvidence(f"variants {a} and {b}: {len(both)} pairs have both; there must be two or more")
    x, y = (scores.per_case[[pair[k] for pair in both]] for k in (0, 1))
    if scores.kind == "binary":
        return lambda level: stats.paired_binary(x / 100, y / 100, level).scaled(100)
    return lambda level: stats.paired_t(x, y, level)


def _largest(level: float, intervals: Sequence[Callable[[float], Interval]]) -> Interval:
    """The largest of several absolute differences, with an interval.

    That all lie below a limit is shown by each bound on its own (an intersection of tests needs no correction); that
    one lies above it is a union of 2 K tests, and its bounds are Bonferroni's.
    """
    each = [at(level) for at in intervals]
    strict = [at(1 - (1 - level) / (2 * len(each))) for at in intervals]
    estimate = max(abs(found.estimate) for found in each)
    widest = max(each, key=lambda found: max(-found.low, found.high))
    low = max(0.0, *(max(found.low, -found.high) for found in strict))
    doubt = next((found.doubt for found in each if found.doubt is not None), None)
    n = min(found.n for found in each)
    high = max(-widest.low, widest.high)
    return replace(widest, estimate=estimate, low=min(low, estimate), high=high, n=n, doubt=doubt)
