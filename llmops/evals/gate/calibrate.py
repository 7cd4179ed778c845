"""A/A runs of a gate: how often it errs on the user's own data, where the truth is known because it was made.

Two systems that are one in truth must not be told apart. They are made in two ways: by shuffling, case by case, which
of a session's systems said what (exchangeable systems, any number of replications), or by asking one system twice. A
system that is worse by a whole margin is made from the same scores, to count the passes that must not be.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmops.evals.gate.config import GateConfig
from llmops.evals.gate.decide import overall
from llmops.evals.gate.lines import Line
from llmops.evals.gate.metric_checks import Comparisons, metric_lines
from llmops.evals.gate.slice_checks import slice_lines

if TYPE_CHECKING:
    from llmops.evals.compare import Paired
    from llmops.evals.metrics import Scores


@dataclass(frozen=True)
class Equals:
    """Two systems that are one in truth: `draw` draws them anew, on each suite; `truth` is a suite's metric's value.

    A system is made worse by a margin of the truth. Of a draw's own value it would not be: draws in which both answered
    well by chance would lose less of it.
    """

    draw: Callable[[np.random.Generator], dict[str, Paired]]
    truth: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Rate:
    """How often something happened of how many times, with a 95 % interval, all in %."""

    n: int
    times: int
    percent: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibrated:
    """One check's error rates; None where the error cannot be made from these scores.

    A false pass is one of a system that is worse by the whole margin (or, of a goal, no better); a false block is a
    FAIL of a system that is equal.
    """

    check: str
    kind: str
    nominal: float  # %
    false_pass: Rate | None
    false_block: Rate
    undecided: Rate


@dataclass
class _Tally:
    equal: list[str] = field(default_factory=list)
    worse: list[str] = field(default_factory=list)


def calibrate(
    gate: GateConfig, equals: Equals, n: int, seed: int
) -> tuple[list[Calibrated], dict[str, Rate]]:
    """Each check's error rates over `n` draws, and how often the whole gate of equal systems ends in each verdict."""
    rng, tallies, verdicts = (
        np.random.default_rng(seed),
        defaultdict[tuple[str, str], _Tally](_Tally),
        Counter[str](),
    )
    for _ in range(n):
        paired = equals.draw(rng)
        lines = _lines(gate, paired)
        verdicts[overall(tuple(line.check for line in lines))] += 1
        for line in lines:
            tallies[_key(line)].equal.append(line.check.verdict)
        lowered = {name: worse(gate, name, of, equals.truth[name], rng) for name, of in paired.items()}
        for line in _lines(gate, lowered):
            if line.check.kind == "non_inferior" and _can_be_made(paired[line.check.suite].candidate, line):
                tallies[_key(line)].worse.append(line.check.verdict)
    nominal = 100 * (1 - gate.level)
    checks = [_calibrated(key, tally, nominal) for key, tally in tallies.items()]
    return checks, {name: rate(times, n) for name, times in sorted(verdicts.items())}


def rate(times: int, n: int) -> Rate:
    """A share with its two-sided 95 % interval (Clopper and Pearson)."""
    from llmops import stats

    found = stats.proportion_interval([1] * times + [0] * (n - times), 0.975) if n > 1 else None
    low, high = (100 * found.low, 100 * found.high) if found else (0.0, 100.0)
    return Rate(n, times, 100 * times / n if n else 0.0, low, high)


def shuffled(paired: dict[str, Paired]) -> Equals:
    """Cases drawn with replacement, and of each it is tossed which system said what; clusters stay whole."""
    units = {name: _units(of) for name, of in paired.items()}

    def draw(rng: np.random.Generator) -> dict[str, Paired]:
        return {name: _resampled(of, units[name], rng) for name, of in paired.items()}

    return Equals(draw, _truth([paired]))


def one_by_one(asked: Sequence[dict[str, Paired]]) -> Equals:
    """Runs in which one system was asked twice, each once and in order."""
    waiting = iter(asked)
    return Equals(lambda rng: next(waiting), _truth(asked))  # noqa: ARG005 - a draw


def _truth(runs: Sequence[dict[str, Paired]]) -> dict[str, dict[str, float]]:
    """What both systems' metrics are on average over all that was seen of them."""
    return {
        suite: {
            metric: float(np.mean([v for run in runs for v in _values(run[suite], metric)]))
            for metric in of.candidate
        }
        for suite, of in runs[0].items()
    }


def _values(paired: Paired, metric: str) -> tuple[float, float]:
    return paired.baseline[metric].value, paired.candidate[metric].value


def worse(
    gate: GateConfig, suite: str, paired: Paired, truth: dict[str, float], rng: np.random.Generator
) -> Paired:
    """The candidate made worse by the whole margin of each guardrail on this suite, where metrics are `truth` in truth.

    Yes-or-no scores lose hits at random, others are lowered by the margin; corpus metrics cannot be made worse so.
    """
    candidate = dict(paired.candidate)
    for rule in (*gate.guardrails, *([gate.primary] if gate.primary else [])):
        scores = candidate.get(rule.metric)
        margin = getattr(rule, "margin", None)
        if gate.suite_of(rule) == suite and scores is not None and margin is not None:
            value = truth[rule.metric]
            size = float(margin) if rule.relative is None else rule.relative * value  # type: ignore[union-attr]
            candidate[rule.metric] = _lowered(scores, size, value, rng)
    return replace(paired, candidate=candidate)


def _lowered(scores: Scores, margin: float, value: float, rng: np.random.Generator) -> Scores:
    if scores.kind == "binary":
        share = margin / value if value else 1.0
        lost = (scores.per_case > 0) & (rng.random(len(scores.per_case)) < share)
        per_case = np.where(lost, 0.0, scores.per_case)
    elif scores.kind == "mean":
        per_case = scores.per_case + (margin if scores.better == "lower" else -margin)
    else:
        return scores
    return replace(scores, per_case=per_case, value=float(per_case.mean()))


def _can_be_made(candidate: dict[str, Scores], line: Line) -> bool:
    scores = candidate[line.check.metric]
    if line.check.role == "slice":
        return False
    return scores.kind == "mean" or (scores.kind == "binary" and scores.value >= abs(line.check.threshold))


def _lines(gate: GateConfig, paired: dict[str, Paired]) -> list[Line]:
    about = Comparisons(gate, paired)
    return metric_lines(about) + slice_lines(about)


def _key(line: Line) -> tuple[str, str]:
    """What a check is called, and its kind: a metric may be a goal and have a margin too."""
    return line.question.label if line.question else line.check.metric, line.check.kind


def _calibrated(key: tuple[str, str], tally: _Tally, nominal: float) -> Calibrated:
    (name, kind), n = key, len(tally.equal)
    passed = None
    if kind == "superior":
        passed = rate(tally.equal.count("PASS"), n)
    elif tally.worse:
        passed = rate(tally.worse.count("PASS"), len(tally.worse))
    undecided = sum(verdict in ("INCONCLUSIVE", "INVALID") for verdict in tally.equal)
    return Calibrated(name, kind, nominal, passed, rate(tally.equal.count("FAIL"), n), rate(undecided, n))


def _units(paired: Paired) -> list[list[int]]:
    """Which cases are drawn together: clusters where the suite declares them, else each alone."""
    if paired.clusters is None:
        return [[i] for i in range(len(paired.cases))]
    groups: dict[str, list[int]] = defaultdict(list)
    for i, cluster in enumerate(paired.clusters):
        groups[cluster].append(i)
    return list(groups.values())


def _resampled(paired: Paired, units: Sequence[Sequence[int]], rng: np.random.Generator) -> Paired:
    drawn = rng.integers(len(units), size=len(units))
    rows = [i for unit in drawn for i in units[unit]]
    swap = np.repeat(rng.random(len(units)) < 0.5, [len(units[unit]) for unit in drawn])
    cases = tuple(paired.cases[i] for i in rows)
    # A cluster that is drawn twice is two clusters.
    clusters = tuple(str(k) for k, unit in enumerate(drawn) for _ in units[unit]) if paired.clusters else None
    first, second = {}, {}
    for name, theirs in paired.baseline.items():
        a, b = _taken(theirs, rows), _taken(paired.candidate[name], rows)
        first[name], second[name] = _mixed(a, b, swap), _mixed(b, a, swap)
    return replace(paired, cases=cases, baseline=first, candidate=second, clusters=clusters)


def _taken(scores: Scores, rows: Sequence[int]) -> Scores:
    index = np.asarray(rows, dtype=np.intp)
    stats_n = None if scores.stats is None else scores.stats[index]
    return replace(scores, per_case=scores.per_case[index], stats=stats_n)


def _mixed(a: Scores, b: Scores, swap: npt.NDArray[np.bool_]) -> Scores:
    """a's scores, b's where swapped, and the value they give."""
    per_case = np.where(swap, b.per_case, a.per_case)
    if a.stats is None or b.stats is None or a.resampled is None:
        return replace(a, per_case=per_case, value=float(per_case.mean()))
    stats_n = np.where(swap[:, None], b.stats, a.stats)
    return replace(
        a, per_case=per_case, stats=stats_n, value=float(a.resampled(stats_n.sum(axis=0)[None])[0])
    )
