"""Checks on metrics over all cases of a suite: primary, guardrails, and at least one improved of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmops.errors import BadRequest
from llmops.evals.gate.config import GateConfig, Guardrail, NonInferior, SliceRule, Superior, Target
from llmops.evals.gate.lines import Line, Question, Seen, decided

if TYPE_CHECKING:
    from llmops.evals.compare import Paired
    from llmops.evals.metrics import Scores
    from llmops.records import Better, CheckKind, Role
    from llmops.stats import Interval


@dataclass(frozen=True, eq=False)
class Comparisons:
    """A gate and both systems' scores on each of its suites."""

    gate: GateConfig
    paired: dict[str, Paired]

    def of(self, target: Target) -> tuple[Paired, Scores]:
        """The comparison that a target is about, and the candidate's scores.

        Raises:
            BadRequest: the suite has no such metric.
        """
        suite = self.gate.suite_of(target)
        paired = self.paired[suite]
        if target.metric not in paired.candidate:
            known = ", ".join(paired.candidate)
            raise BadRequest(
                f"gate {self.gate.name}: {target.metric} is not a metric of its suite {suite}; it has {known}"
            )
        return paired, paired.candidate[target.metric]

    def question(self, target: Target, role: Role, kind: CheckKind, threshold: float) -> Question:
        """A question about a target with the gate's level, power and floor."""
        _, scores = self.of(target)
        gate = self.gate
        return Question(
            role, kind, gate.suite_of(target), target.metric, threshold, gate.level, gate.power, gate.min_cases,
            better=scores.better, unit=scores.unit, show_suite=len(gate.files) > 1,
        )  # fmt: skip


def metric_lines(about: Comparisons) -> list[Line]:
    """The primary metric, every guardrail, and the family of which one must be improved."""
    gate = about.gate
    lines = []
    if gate.primary is not None:
        lines.append(_rule_line(about, gate.primary, "primary"))
    lines += [_rule_line(about, rule, "guardrail") for rule in gate.guardrails]
    return lines + improved_lines(about)


def _rule_line(about: Comparisons, rule: Guardrail | NonInferior | Superior, role: Role) -> Line:
    paired, _ = about.of(rule)
    if isinstance(rule, Superior):
        question = about.question(rule, role, "superior", rule.by)
        return decided(question, seen(paired, rule.metric, paired.difference(rule.metric, question.level)))
    return margin_line(about.question(rule, role, "non_inferior", 0.0), paired, rule)


def margin_line(question: Question, paired: Paired, rule: Guardrail | NonInferior | SliceRule) -> Line:
    """Whether the candidate is worse by less than a rule's margin over the cases of `paired`."""
    found, margin = margin_interval(paired, rule, question.level)
    return decided(replace(question, threshold=-margin), seen(paired, rule.metric, found))


def margin_interval(
    paired: Paired, rule: Guardrail | NonInferior | SliceRule, level: float
) -> tuple[Interval, float]:
    """The interval of the difference, and the margin on the metric's scale."""
    if rule.relative is None:
        return paired.difference(rule.metric, level), float(rule.margin)
    return _relative(paired, rule.metric, rule.relative, level)


def seen(paired: Paired, metric: str, found: Interval) -> Seen:
    """A paired difference with both systems' values."""
    ours, theirs = paired.candidate[metric], paired.baseline[metric]
    return Seen(found, ours.value, theirs.value, f"{found.method}; {ours.signature}")


def _relative(paired: Paired, metric: str, share: float, level: float) -> tuple[Interval, float]:
    """The interval of the difference, and the margin, where the margin is a share of the baseline's value.

    The margin is as uncertain as the baseline: the test is on candidate - (1 -/+ share) * baseline case by case, and
    the interval is moved so that its middle is the plain difference.
    """
    from llmops import stats

    theirs, ours = paired.baseline[metric], paired.candidate[metric]
    if theirs.kind not in ("mean", "binary"):
        raise BadRequest(
            f"{metric}: a margin in % needs a metric that is a mean over cases; write the margin as a number"
        )
    signed = share if theirs.better == "higher" else -share
    found = stats.paired_t((1 - signed) * theirs.per_case, ours.per_case, level, paired.clusters)
    shift = signed * theirs.value
    moved = replace(
        found, estimate=found.estimate - shift, low=found.low - shift, high=found.high - shift,
        method=f"{found.method}, margin {100 * share:g} % of the baseline",
    )  # fmt: skip
    return moved, abs(shift)


def improved_lines(about: Comparisons) -> list[Line]:
    """The family of which one member must be better: each with its p-value, Holm-adjusted.

    A member passes when its adjusted p-value is at most 1 - level. What the others say stands in their lines alone.
    """
    from llmops import stats

    targets = about.gate.any_improved
    if not targets:
        return []
    alpha = 1 - about.gate.level
    lines, raw = [], []
    for target in targets:
        paired, scores = about.of(target)
        question = about.question(target, "any_improved", "superior", 0.0)
        lines.append(
            decided(question, seen(paired, target.metric, paired.difference(target.metric, question.level)))
        )
        raw.append(stats.p_value(_by_level(paired, target.metric, scores.better), 0.0))
    adjusted = [float(p) for p in stats.holm(raw)]
    return [
        _in_family(line, p, alpha, f"Holm over {len(targets)}")
        for line, p in zip(lines, adjusted, strict=True)
    ]


def _in_family(line: Line, p: float, alpha: float, method: str) -> Line:
    check = replace(line.check, p_value=p, method=f"{line.check.method}; {method}")
    if p <= alpha or check.verdict != "PASS":
        return replace(line, check=check)
    reason = f"{check.metric}: adjusted p {p:.3f} is above {alpha:.3g}: better alone, not as one of several"
    return replace(line, check=replace(check, verdict="INCONCLUSIVE"), reason=reason)


def _by_level(paired: Paired, metric: str, better: Better) -> Callable[[float], Interval]:
    """The interval of the improvement at a level: mirrored where less is better."""

    def at(level: float) -> Interval:
        found = paired.difference(metric, level)
        return found if better == "higher" else found.mirrored()

    return at
