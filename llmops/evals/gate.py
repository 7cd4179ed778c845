"""The gate: PASS, FAIL, INCONCLUSIVE or INVALID about a candidate, from two reports of one session.

Every check must pass for a PASS. Each is a one-sided test at 1 - level, and asking for all of them needs no
correction for their number: a false PASS requires each to err at once. Nothing stored is trusted: completions
are verified byte by byte and scored again, and the suite is resolved again from its file. Votes join the checks in
`llmops.evals.votes`; approvals are asked for here and given later (`llmops.registry.approvals`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmops.errors import BadRequest, InvalidEvidence
from llmops.evals.votes import RatingRules, count_votes
from llmops.records import Check, Decision, RatingEvidence, Verdict
from llmops.registry.adapters import Registry
from llmops.registry.names import name_state
from llmops.schema import digest_of
from llmops.settings import Workspace, load_yaml, now

if TYPE_CHECKING:
    from llmops.evals.compare import Paired
    from llmops.evals.review import Evidence


class NonInferior(BaseModel):
    """The candidate may be worse by less than a margin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["non_inferior"]
    metric: str
    """A metric of the suite."""
    margin: float = Field(gt=0)
    """Points on the metric's scale (0 to 100)."""

    @property
    def threshold(self) -> float:
        """What the whole interval of the difference must lie above."""
        return -self.margin


class Superior(BaseModel):
    """The candidate must be better by more than `by`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["superior"]
    metric: str
    """A metric of the suite."""
    by: float = Field(default=0.0, ge=0)
    """Points on the metric's scale (0 to 100)."""

    @property
    def threshold(self) -> float:
        """What the whole interval of the difference must lie above."""
        return self.by


Rule = Annotated[NonInferior | Superior, Field(discriminator="kind")]


class GateConfig(BaseModel):
    """A gate as its file spells it (`evals/gates/*.yaml`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """Shown in decisions."""
    public_name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """The model name whose champion is the baseline."""
    suite: str
    """The suite's file, relative to this one."""
    level: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of each bound: 0.95 decides one-sided at 5 %."""
    power: float = Field(default=0.8, gt=0, lt=1)
    """Probability of a PASS at the number of cases that is said to be needed."""
    min_cases: int = Field(default=32, ge=2)
    """Fewer cases decide nothing: the intervals keep their level from about this many on."""
    checks: tuple[Rule, ...] = Field(min_length=1)
    """What must hold; all of it."""
    ratings: RatingRules | None = None
    """What people must have said; nobody is asked when left out."""
    approvals: int = Field(default=0, ge=0, le=16)
    """How many people must approve a PASS before it may be promoted."""


def load_gate(path: Path) -> GateConfig:
    """The gate in a YAML file.

    Raises:
        ConfigError: it does not say what it must.
    """
    return load_yaml(path, GateConfig)


def check_gate(
    gate_path: Path, workspace: Workspace, candidate: str = "latest", session: str | None = None
) -> Decision:
    """Decide about an adapter on its newest session's reports (or `session`'s); store the decision and tell the ledger.

    The baseline is the public name's champion, or the base while it has none. The champion itself is held against the
    base: that is how a release moves to another engine.

    Raises:
        BadRequest: the gate, its suite or the candidate do not exist.
        InvalidEvidence: there are no reports of both systems to decide on.
    """
    from llmops.evals.review import review

    gate, registry = load_gate(gate_path), Registry.of(workspace)
    record = registry.adapter(candidate)
    baseline = name_state(registry, gate.public_name).baseline_for(record.adapter, record.base)
    suite_path = gate_path.parent / gate.suite
    evidence = review(registry, suite_path, record, baseline, session)
    found = _find(registry, gate, evidence)
    decision = Decision(
        gate=gate.name,
        gate_digest=gate_digest(gate),
        public_name=gate.public_name,
        candidate=record.adapter,
        baseline=baseline,
        base=record.base,
        reports=evidence.reports,
        engine=evidence.engine,
        verdict=found.verdict,
        checks=found.checks,
        reasons=found.reasons,
        ratings=found.ratings,
        n_approvals=gate.approvals,
        created_at=now(),
    )
    _record(registry, decision)
    return decision


def _record(registry: Registry, decision: Decision) -> None:
    """Store a decision and tell the ledger."""
    body = {
        "decision": registry.store.put_record(decision),
        "public_name": decision.public_name,
        "verdict": decision.verdict,
        "candidate": decision.candidate,
    }
    registry.ledger.append("decision.made", body)


def gate_digest(gate: GateConfig) -> str:
    """Digest of everything a gate's file says."""
    return digest_of(gate.model_dump(mode="json"))


@dataclass(frozen=True)
class _Found:
    """What a gate says to the evidence; no checks when it is INVALID."""

    verdict: Verdict
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    ratings: RatingEvidence | None


def _find(registry: Registry, gate: GateConfig, evidence: Evidence) -> _Found:
    """Every check of the gate on metrics and votes; evidence that is broken is INVALID, whatever else was found."""
    if evidence.faults or evidence.paired is None:
        return _Found("INVALID", (), evidence.faults, None)
    checks, reasons = _checks(gate, evidence.paired)
    if gate.ratings is None:
        return _Found(overall(checks), checks, reasons, None)
    try:
        votes = count_votes(registry, gate.ratings, evidence, gate.level, gate.power)
    except InvalidEvidence as error:
        return _Found("INVALID", (), (str(error),), None)
    checks += votes.checks
    return _Found(overall(checks), checks, reasons + votes.reasons, votes.evidence)


def overall(checks: tuple[Check, ...]) -> Verdict:
    """FAIL when any check fails, else INCONCLUSIVE when any is, else PASS; INVALID when nothing was checked."""
    verdicts = {check.verdict for check in checks}
    if not verdicts:
        return "INVALID"
    for verdict in ("INVALID", "FAIL", "INCONCLUSIVE"):
        if verdict in verdicts:
            return verdict
    return "PASS"


def _checks(gate: GateConfig, paired: Paired) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """Every check on metrics with the reasons of what did not pass."""
    missing = [rule.metric for rule in gate.checks if rule.metric not in paired.candidate]
    if missing:
        known = ", ".join(paired.candidate)
        raise BadRequest(f"gate {gate.name}: {missing[0]} is not a metric of its suite; it has {known}")
    checks = tuple(_check(gate, rule, paired) for rule in gate.checks)
    return checks, tuple(_reason(gate, check) for check in checks if check.verdict != "PASS")


def _check(gate: GateConfig, rule: NonInferior | Superior, paired: Paired) -> Check:
    from llmops import stats

    found = paired.difference(rule.metric, gate.level)
    verdict: Verdict = stats.decide_bound(found, rule.threshold)
    needed = stats.n_needed(found, rule.threshold, gate.power) if verdict == "INCONCLUSIVE" else None
    if found.n < gate.min_cases:
        verdict, needed = "INCONCLUSIVE", max(gate.min_cases, needed or 0)
    return Check(
        metric=rule.metric,
        kind=rule.kind,
        threshold=rule.threshold,
        candidate=paired.candidate[rule.metric].value,
        baseline=paired.baseline[rule.metric].value,
        difference=found.estimate,
        low=found.low,
        high=found.high,
        level=gate.level,
        n_cases=found.n,
        verdict=verdict,
        n_needed=needed,
        method=f"{found.method}; {paired.candidate[rule.metric].signature}",
    )


def _reason(gate: GateConfig, check: Check) -> str:
    """Why a check did not pass, in words."""
    numbers = f"{check.metric}: difference {check.difference:+.2f} [{check.low:+.2f}, {check.high:+.2f}]"
    if check.verdict == "FAIL":
        return f"{numbers} lies below {check.threshold:+g}"
    if check.n_cases < gate.min_cases:
        return f"{check.metric}: {check.n_cases} cases decide nothing; the gate asks for {gate.min_cases}"
    if check.n_needed is None:
        return f"{numbers} does not clear {check.threshold:+g}; more cases are not expected to change that"
    return f"{numbers} does not clear {check.threshold:+g}; about {check.n_needed:,} cases are needed"
