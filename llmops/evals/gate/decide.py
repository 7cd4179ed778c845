"""The gate: PASS, FAIL, INCONCLUSIVE or INVALID about a candidate, from two reports of one session a suite.

Every check must pass for a PASS. Each is a one-sided test at 1 - level, and asking for all of them needs no
correction for their number: a false PASS requires each to err at once. Nothing stored is trusted: completions
are verified byte by byte and scored again, and the suites are resolved again from their files. The gate itself must
have been declared before the questions (`llmops.evals.gate.declare`). Votes join the checks in
`llmops.evals.gate.votes`; approvals are asked for here and given later (`llmops.registry.approvals`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmops.errors import BadRequest, InvalidEvidence
from llmops.evals.compare import Paired
from llmops.evals.gate.config import GateConfig, load_gate
from llmops.evals.gate.declare import declaration_fault, declared_at
from llmops.evals.gate.judges import Asked, judge_lines
from llmops.evals.gate.lines import Line
from llmops.evals.gate.metric_checks import Comparisons, metric_lines
from llmops.evals.gate.origins import origin_faults
from llmops.evals.gate.slice_checks import part_lines
from llmops.evals.gate.votes import count_votes
from llmops.evals.review import Evidence, review
from llmops.records import (
    AdapterRecord,
    Check,
    Decision,
    EngineSignature,
    JudgeEvidence,
    RatingEvidence,
    Verdict,
)
from llmops.registry.adapters import Registry
from llmops.registry.names import name_state
from llmops.settings import Workspace, now


def check_gate(
    gate_path: Path, workspace: Workspace, candidate: str = "latest", session: str | None = None
) -> Decision:
    """Decide about an adapter on its newest session's reports (or `session`'s); store the decision and tell the ledger.

    Raises:
        BadRequest: the gate, one of its suites, the baseline or the candidate do not exist.
        InvalidEvidence: there are no reports of both systems to decide on.
    """
    gate, registry = load_gate(gate_path), Registry.of(workspace)
    record = registry.adapter(candidate)
    baseline = baseline_of(registry, gate, record)
    evidence = gather(registry, Asked(gate, gate_path.parent), record, baseline, session)
    sessions = dict.fromkeys(found.session for found in evidence.values())
    faults = declaration_fault(registry.ledger, gate, sessions) + faults_of(evidence)
    faults += [fault for of in evidence.values() for fault in origin_faults(registry, gate, of.reports)]
    found = _find(registry, Asked(gate, gate_path.parent), evidence, faults)
    decision = Decision(
        gate=gate.name,
        gate_digest=gate.digest,
        gate_declared=declared_at(registry.ledger, gate.digest),
        public_name=gate.public_name,
        candidate=record.adapter,
        baseline=baseline,
        champion=name_state(registry, gate.public_name).champion_adapter,
        base=record.base,
        reports=tuple(digest for of in evidence.values() for digest in of.reports),
        engine=_engine(evidence),
        verdict=found.verdict,
        checks=found.checks,
        reasons=found.reasons,
        ratings=found.ratings,
        n_approvals=gate.approvals,
        created_at=now(),
        judge=found.judge,
    )
    _record(registry, decision)
    return decision


def baseline_of(registry: Registry, gate: GateConfig, candidate: AdapterRecord) -> str:
    """Digest of what a gate compares a candidate with.

    `champion` is the public name's, or the base while it has none. The champion itself is held against the base: that
    is how a release moves to another engine. So is a candidate of another base, on whose engine no champion runs.

    Raises:
        BadRequest: the gate names an adapter that is not there, has another base, or is the candidate itself.
    """
    if gate.baseline == "champion":
        state = name_state(registry, gate.public_name)
        champion = state.champion_adapter
        if champion is not None and registry.adapter(champion).base != candidate.base:
            return candidate.base
        return state.baseline_for(candidate.adapter, candidate.base)
    if gate.baseline == "base":
        return candidate.base
    named = registry.adapter(gate.baseline)
    if named.base != candidate.base or named.adapter == candidate.adapter:
        what = "is the candidate itself" if named.adapter == candidate.adapter else "has another base"
        raise BadRequest(f"gate {gate.name}: the baseline {named.model_name} {what}; name another")
    return named.adapter


def gather(
    registry: Registry, asked: Asked, record: AdapterRecord, baseline: str, session: str | None
) -> dict[str, Evidence]:
    """The evidence on every suite of a gate, by the suite's name in it."""
    return {
        name: review(registry, asked.folder / file, record, baseline, session)
        for name, file in asked.gate.files.items()
    }


def faults_of(evidence: dict[str, Evidence]) -> list[str]:
    """What is wrong with the evidence of each suite, and between suites."""
    many = len(evidence) > 1
    faults = [f"{name}: {fault}" if many else fault for name, of in evidence.items() for fault in of.faults]
    engines = {of.engine for of in evidence.values() if of.engine is not None}
    if len(engines) > 1:
        faults.append("the suites were answered by different engines; evaluate all of them on one")
    return faults


def pilot(registry: Registry, gate_path: Path, session: str | None, candidate: str) -> dict[str, Paired]:
    """Both systems' scores on a gate's suites, whether or not the gate was declared before: to learn from, not decide.

    Raises:
        BadRequest: the gate, one of its suites, the baseline or the candidate do not exist.
        InvalidEvidence: there are no such reports, or they are no evidence.
    """
    gate, record = load_gate(gate_path), registry.adapter(candidate)
    asked = Asked(gate, gate_path.parent)
    evidence = gather(registry, asked, record, baseline_of(registry, gate, record), session)
    faults = faults_of(evidence)
    if faults:
        raise InvalidEvidence(f"pilot: {faults[0]}; evaluate again")
    return {name: of.paired for name, of in evidence.items() if of.paired is not None}


def _engine(evidence: dict[str, Evidence]) -> EngineSignature | None:
    engines = {of.engine for of in evidence.values()}
    return engines.pop() if len(engines) == 1 else None


def _record(registry: Registry, decision: Decision) -> None:
    """Store a decision and tell the ledger."""
    body = {
        "decision": registry.store.put_record(decision),
        "public_name": decision.public_name,
        "verdict": decision.verdict,
        "candidate": decision.candidate,
    }
    registry.ledger.append("decision.made", body)


@dataclass(frozen=True)
class _Found:
    """What a gate says to the evidence; no checks when it is INVALID."""

    verdict: Verdict
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    ratings: RatingEvidence | None = None
    judge: JudgeEvidence | None = None


def _find(registry: Registry, asked: Asked, evidence: dict[str, Evidence], faults: Sequence[str]) -> _Found:
    """Every check on metrics, votes and judgements; evidence that is broken is INVALID, whatever else was found."""
    gate = asked.gate
    paired = {name: of.paired for name, of in evidence.items() if of.paired is not None}
    if faults or len(paired) < len(evidence):
        return _Found("INVALID", (), tuple(dict.fromkeys(faults)))
    try:
        lines = metric_lines(about := Comparisons(gate, paired)) + part_lines(about)
        votes = judged = None
        if gate.ratings is not None:
            votes = count_votes(registry, gate, evidence[gate.ratings.suite or gate.first])
        if gate.judge is not None:
            judged = judge_lines(registry, asked, evidence[gate.judge.suite or gate.first])
    except InvalidEvidence as error:
        return _Found("INVALID", (), (str(error),))
    lines += votes.lines if votes else []
    lines += judged.lines if judged else []
    checks = tuple(line.check for line in lines)
    return _Found(
        overall(checks),
        checks,
        (*reasons_of(lines), *(judged.notes if judged else ())),
        votes.evidence if votes else None,
        judged.evidence if judged else None,
    )


def reasons_of(lines: Iterable[Line]) -> list[str]:
    """Why the lines did not pass; a family of which one must be improved gives its reasons only when none is."""
    lines = list(lines)
    improved = any(line.check.role == "any_improved" and line.check.verdict == "PASS" for line in lines)
    return [
        line.reason
        for line in lines
        if line.reason is not None and not (improved and line.check.role == "any_improved")
    ]


def overall(checks: tuple[Check, ...]) -> Verdict:
    """FAIL when any check fails, else INCONCLUSIVE when any is, else PASS; INVALID when nothing was checked.

    The checks of which one must be improved count as one: PASS when one passes, FAIL when all fail.
    """
    family = [check.verdict for check in checks if check.role == "any_improved"]
    verdicts = {check.verdict for check in checks if check.role != "any_improved"}
    if family:
        decided = "PASS" if "PASS" in family else "FAIL" if set(family) == {"FAIL"} else "INCONCLUSIVE"
        verdicts.add("INVALID" if "INVALID" in family else decided)  # type: ignore[arg-type]
    if not verdicts:
        return "INVALID"
    order: tuple[Verdict, ...] = ("INVALID", "FAIL", "INCONCLUSIVE")
    return next((verdict for verdict in order if verdict in verdicts), "PASS")
