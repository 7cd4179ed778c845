"""How many cases and rated items a gate needs, before GPU or rater time: from a pilot's spread, or from none.

For a margin the systems are taken to be equal in truth; for a goal, the difference is the pilot's or one that is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmops.errors import BadRequest, InvalidEvidence
from llmops.evals.gate.config import GateConfig, Guardrail, NonInferior, Superior, load_gate
from llmops.evals.gate.decide import pilot
from llmops.evals.gate.judge_needs import judge_needs
from llmops.evals.gate.lines import Line, label
from llmops.evals.gate.metric_checks import Comparisons, metric_lines
from llmops.evals.gate.needs import POWERS, Assumptions, Needed
from llmops.evals.gate.slice_checks import part_lines
from llmops.registry.adapters import Registry

if TYPE_CHECKING:
    from llmops.evals.metrics import Metric
    from llmops.stats import Interval, Plan

DISAGREE = 0.3
"""Share of cases on which two systems' yes-or-no scores differ, where no pilot says."""
SPREAD = 25.0
"""Standard deviation, in points, of two systems' difference on one case, where no pilot says."""


def plan(
    registry: Registry, gate_path: Path, session: str | None, candidate: str, assumed: Assumptions
) -> list[Needed]:
    """What every check of a gate needs.

    Args:
        registry: where the pilot's reports are.
        gate_path: the gate.
        session: the pilot, a session whose two systems show the spread; None takes the newest, or goes without.
        candidate: the adapter of the pilot.
        assumed: what is taken for true.

    Raises:
        BadRequest: the gate or the adapter do not exist.
        InvalidEvidence: the pilot that is named has no reports, or none that are evidence.
    """
    gate = load_gate(gate_path)
    try:
        lines = _pilot_lines(registry, gate_path, session, candidate)
    except (BadRequest, InvalidEvidence):
        if session is not None:
            raise
        found = list(_without_pilot(gate, gate_path, assumed))
    else:
        found = [_from_line(line, assumed) for line in lines if line.check.role != "exploratory"]
    return [*found, *_votes(gate, assumed), *judge_needs(registry, gate, gate_path.parent, assumed)]


def _pilot_lines(registry: Registry, gate_path: Path, session: str | None, candidate: str) -> list[Line]:
    about = Comparisons(load_gate(gate_path), pilot(registry, gate_path, session, candidate))
    return metric_lines(about) + part_lines(about)


def _from_line(line: Line, assumed: Assumptions) -> Needed:
    check, interval = line.check, line.oriented
    if interval is None or line.question is None:
        raise ValueError(f"{check.metric}: was not measured")
    truth = 0.0 if check.kind == "non_inferior" else interval.estimate
    basis = (
        f"pilot of {check.n_cases}, equal systems"
        if check.kind == "non_inferior"
        else f"pilot of {check.n_cases}"
    )
    if check.kind == "superior" and assumed.effect is not None:
        truth, basis = assumed.effect, f"pilot of {check.n_cases}, effect {assumed.effect:g}"
    unit = "pairs" if check.role == "pair" else "cases"
    sign = 1 if check.better == "higher" else -1
    needed: dict[str, int | None] = {f"{power:g}": None for power in POWERS}
    sd = interval.sd
    if sd > 0:
        planned = _plan_of(interval, line.question.threshold, truth)
        sd, needed = planned.sd, _sizes(planned)
    else:
        basis = f"pilot of {check.n_cases}, answered alike: no spread to plan by"
    return Needed(
        line.question.label, check.kind, check.threshold, sign * truth if truth else 0.0, sd, unit,
        check.n_cases, needed, basis,
    )  # fmt: skip


def _sizes(planned: Plan) -> dict[str, int | None]:
    from llmops import stats

    return {f"{power:g}": stats.n_for_power(planned, power) for power in POWERS}


def _plan_of(interval: Interval, threshold: float, truth: float) -> Plan:
    """The test of a pilot's interval; yes-or-no scores have as many changes as the pilot's, shared out by the truth."""
    from llmops import stats

    if interval.method != "tango":
        return stats.mean_plan(interval, threshold, truth)
    changes = (interval.sd**2 + interval.estimate**2) / 100**2
    changes = max(changes, abs(truth) / 100)
    gain, loss = (changes + truth / 100) / 2, (changes - truth / 100) / 2
    return _in_points(stats.binary_plan(gain, loss, threshold / 100, interval.level))


def _in_points(plan: Plan) -> Plan:
    null_sd = None if plan.null_sd is None else 100 * plan.null_sd
    return replace(
        plan, threshold=100 * plan.threshold, sd=100 * plan.sd, difference=100 * plan.difference, null_sd=null_sd,
        step=100 * plan.step,
    )  # fmt: skip


def _without_pilot(gate: GateConfig, gate_path: Path, assumed: Assumptions) -> Iterator[Needed]:
    """The checks on metrics in points with assumed spreads; what cannot be foreseen has no numbers."""
    rules: Sequence[Superior | NonInferior | Guardrail] = [
        *([gate.primary] if gate.primary is not None else []),
        *gate.guardrails,
    ]
    for rule in rules:
        suite = gate.suite_of(rule)
        metric = _metric(gate_path.parent / gate.files[suite], rule.metric)
        name = label(suite if len(gate.files) > 1 else "", rule.metric, None)
        kind, limit, truth = "non_inferior", 0.0, 0.0
        if isinstance(rule, Superior):
            kind, limit, truth = "superior", rule.by, assumed.effect or 0.0
        elif rule.relative is None:
            limit = -float(rule.margin)
        known = metric.unit == "points" and limit != truth
        planned = _assumed_plan(metric, gate.level, limit, truth)
        needed, basis = _sizes(planned), "no pilot: spread assumed"
        if not known:
            needed, basis = dict.fromkeys(needed), "needs a pilot, or --effect"
        yield Needed(name, kind, limit, truth, planned.sd, "cases", None, needed, basis)


def _metric(path: Path, name: str) -> Metric:
    from llmops.evals.metrics.config import resolve_metrics
    from llmops.evals.suite import SuiteConfig
    from llmops.settings import load_yaml

    metrics = {m.name: m for m in resolve_metrics(load_yaml(path, SuiteConfig).metrics, path.parent)}
    if name not in metrics:
        raise BadRequest(f"{path}: {name} is not a metric of this suite; it has {', '.join(metrics)}")
    return metrics[name]


def _assumed_plan(metric: Metric, level: float, limit: float, truth: float) -> Plan:
    from llmops import stats

    if metric.kind != "binary":
        return stats.Plan(limit, SPREAD, truth, level)
    changes = max(DISAGREE, abs(truth) / 100)
    gain, loss = (changes + truth / 100) / 2, (changes - truth / 100) / 2
    return _in_points(stats.binary_plan(gain, loss, limit / 100, level))


def _votes(gate: GateConfig, assumed: Assumptions) -> Iterator[Needed]:
    """Rated items, one vote each: a win rate's spread follows from the share of ties."""
    rules = gate.ratings
    if rules is None:
        return
    from llmops import stats

    won = assumed.win_rate if rules.win_rate.kind == "superior" else 50.0
    planned = _in_points(
        stats.vote_plan(assumed.ties_frac, rules.win_rate.threshold / 100, won / 100, gate.level)
    )
    if rules.looks:
        planned = replace(planned, looks=tuple(items / rules.looks[-1] for items in rules.looks))
    whose = f"true win rate {won:g} %" if won != 50 else "equal systems"
    yield Needed(
        "win_rate", rules.win_rate.kind, rules.win_rate.threshold, won - 50, planned.sd, "rated items", None,
        _sizes(planned), f"{whose}, {100 * assumed.ties_frac:g} % ties, one vote an item",
    )  # fmt: skip
