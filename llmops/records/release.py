"""Decisions, approvals and releases: what moves a public name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmops.records.evaluation import Better
from llmops.records.feedback import RatingEvidence
from llmops.records.judgement import JudgeEvidence
from llmops.records.models import EngineSignature
from llmops.schema import Record

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]


CheckKind = Literal["non_inferior", "superior", "at_most", "not_worse"]
Role = Literal[
    "primary", "guardrail", "any_improved", "slice", "exploratory", "gap", "pair", "votes", "judge"
]


@dataclass(frozen=True)
class Check:
    """One line of a decision, on the metric's own scale.

    For a metric, `difference` is paired, candidate - baseline. For votes, `win_rate` is held against 50 % and
    `both_bad`, a share in %, against its limit (`at_most`); their cases are rated items. Of an `at_most` check
    `difference` is the number that has the limit. `threshold` has the sign of `difference`: where less is better, the
    interval must lie below it. `role` is the part of the gate's file that asks; `p_value` is that of a family of
    checks, adjusted for its size.
    """

    metric: str
    kind: CheckKind
    threshold: float
    candidate: float
    baseline: float
    difference: float
    low: float
    high: float
    level: float
    n_cases: int
    verdict: Verdict
    n_needed: int | None
    method: str
    role: Role = "primary"
    suite: str = ""  # its name
    group: str | None = None  # "topic=law": the cases of that slice alone
    better: Better = "higher"
    unit: str = "points"
    p_value: float | None = None


@dataclass(frozen=True)
class Decision(Record):
    """What a gate said about a candidate against a baseline, on which evidence."""

    schema: ClassVar[str] = "llmops.decision/3"
    gate: str  # name
    gate_digest: str
    gate_declared: int | None  # number of the ledger's event that declared it; None when none did
    public_name: str
    candidate: str  # adapter digest
    baseline: str  # digest of the champion, of the base, or of the adapter that the gate names
    champion: str | None  # adapter digest of what the public name stood for
    base: str
    reports: tuple[str, ...]  # report digests: candidate, baseline, of each suite in turn
    engine: EngineSignature | None  # None when the reports disagree
    verdict: Verdict
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    ratings: RatingEvidence | None  # the votes that were counted; None when none are asked for or in yet
    n_approvals: int  # approvals the gate asks for before a promotion
    created_at: str
    judge: JudgeEvidence | None = None  # what a judge said; None when none is asked, or it could not check


@dataclass(frozen=True)
class Approval(Record):
    """One person's consent to a decision, bound to its digest, the adapter's, and the ledger's head at that time."""

    schema: ClassVar[str] = "llmops.approval/1"
    decision: str
    candidate: str  # adapter digest
    approver: str
    reason: str | None
    ledger_seq: int
    ledger_head: str
    created_at: str


@dataclass(frozen=True)
class Release(Record):
    """A request to point a public name at an adapter, bound to its evidence and to the ledger's head at that time."""

    schema: ClassVar[str] = "llmops.release/2"
    public_name: str
    kind: Literal["promote", "rollback", "override"]
    adapter: str
    replaces: str | None  # adapter digest of the champion before
    decision: str | None  # Decision digest; None only for an override
    approvals: tuple[str, ...]  # Approval digests; as many as the decision asks for
    reason: str | None
    requested_by: str
    ledger_seq: int
    ledger_head: str
    created_at: str
