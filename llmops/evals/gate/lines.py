"""One line of a decision: an interval held against a threshold, and the sentence that says why it did not pass.

A question is put so that more is better; where less is, the interval is mirrored to decide and shown as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmops.records import Better, Check, CheckKind, Role, Verdict

if TYPE_CHECKING:
    from llmops.stats import Interval


@dataclass(frozen=True)
class Question:
    """What a check asks: `threshold` is what the interval must lie above, were more always better."""

    role: Role
    kind: CheckKind
    suite: str
    metric: str
    threshold: float
    level: float
    power: float
    min_cases: int
    group: str | None = None
    better: Better = "higher"
    unit: str = "points"
    show_suite: bool = False

    @property
    def label(self) -> str:
        """What a reader calls it: the metric, its suite where there are several, and the group."""
        return label(self.suite if self.show_suite else "", self.metric, self.group)


@dataclass(frozen=True)
class Seen:
    """What was measured: the interval with the numbers it came from."""

    interval: Interval
    candidate: float
    baseline: float
    method: str


@dataclass(frozen=True)
class Line:
    """A check, why it did not pass (None when it did), and the question and measurement it came from."""

    check: Check
    reason: str | None = None
    question: Question | None = None
    seen: Seen | None = None

    @property
    def is_of_numbers(self) -> bool:
        """Whether interval and threshold are the whole reason: neither too few cases nor a doubt about the interval."""
        if self.seen is None or self.question is None:
            return False
        found = self.seen.interval
        return found.doubt is None and found.n >= self.question.min_cases

    @property
    def oriented(self) -> Interval | None:
        """What was measured, mirrored where less is better."""
        if self.seen is None or self.question is None:
            return None
        found = self.seen.interval
        return found if self.question.better == "higher" else found.mirrored()


def label(suite: str, metric: str, group: str | None) -> str:
    """`suite metric [slice=value]`, without what is not there."""
    return " ".join(part for part in (suite, metric, f"[{group}]" if group else "") if part)


def decided(question: Question, seen: Seen) -> Line:
    """PASS when the whole interval lies on the good side of the threshold, FAIL on the other, else INCONCLUSIVE.

    Below the floor, and where the interval doubts its own level, nothing is decided. INVALID where there is no variance
    at all: equal scores throughout may as well mean that one system answered twice.
    """
    from llmops import stats

    found = seen.interval
    oriented = found if question.better == "higher" else found.mirrored()
    verdict: Verdict = stats.decide_bound(oriented, question.threshold)
    needed = None
    if verdict == "INCONCLUSIVE":
        needed = stats.n_needed(oriented, question.threshold, question.power)
    why = None
    if found.doubt is not None and found.low == found.high:
        verdict, needed, why = "INVALID", None, found.doubt
    elif found.n < question.min_cases:
        verdict, needed = "INCONCLUSIVE", max(question.min_cases, needed or 0)
        why = f"{found.n} cases decide nothing; the gate asks for {question.min_cases}"
    elif found.doubt is not None:
        verdict, needed, why = "INCONCLUSIVE", max(needed or 0, 2 * found.n), found.doubt
    check = check_of(question, seen, verdict, needed)
    if verdict == "PASS":
        return Line(check, None, question, seen)
    reason = f"{question.label}: {why}" if why else _reason(question, check)
    return Line(check, reason, question, seen)


def check_of(question: Question, seen: Seen, verdict: Verdict, needed: int | None) -> Check:
    """The check of a question, what was measured and what is said to it."""
    found = seen.interval
    return Check(
        metric=question.metric,
        kind=question.kind,
        threshold=question.threshold if question.better == "higher" else 0.0 - question.threshold,
        candidate=seen.candidate,
        baseline=seen.baseline,
        difference=found.estimate,
        low=found.low,
        high=found.high,
        level=question.level,
        n_cases=found.n,
        verdict=verdict,
        n_needed=needed,
        method=seen.method,
        role=question.role,
        suite=question.suite,
        group=question.group,
        better=question.better,
        unit=question.unit,
    )


def _reason(question: Question, check: Check) -> str:
    """Why a check did not pass, in words."""
    numbers = f"{question.label}: difference {check.difference:+.2f} [{check.low:+.2f}, {check.high:+.2f}]"
    limit = f"{check.threshold:+g}"
    if check.kind == "at_most":
        numbers = f"{question.label}: {check.difference:.2f} [{check.low:.2f}, {check.high:.2f}]"
        limit = f"{check.threshold:g}"
    if check.verdict == "FAIL":
        return f"{numbers} lies {'below' if question.better == 'higher' else 'above'} {limit}"
    if check.n_needed is None:
        return f"{numbers} does not clear {limit}; more cases are not expected to change that"
    return f"{numbers} does not clear {limit}; about {check.n_needed:,} cases are needed"
