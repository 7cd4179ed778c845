"""Decisions, approvals and releases: what moves a public name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmops.records.feedback import RatingEvidence
from llmops.records.models import EngineSignature
from llmops.schema import Record

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]


@dataclass(frozen=True)
class Check:
    """One line of a decision, on the metric's own scale.

    For a metric, `difference` is paired, candidate - baseline. For votes, `win_rate` is held against 50 % and
    `both_bad`, a share in %, against its limit (`at_most`); their cases are rated items.
    """

    metric: str
    kind: Literal["non_inferior", "superior", "at_most"]
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


@dataclass(frozen=True)
class Decision(Record):
    """What a gate said about a candidate against a baseline, on which evidence."""

    schema: ClassVar[str] = "llmops.decision/2"
    gate: str  # name
    gate_digest: str
    public_name: str
    candidate: str  # adapter digest
    baseline: str  # digest of the champion, or of the base
    base: str
    reports: tuple[str, str]  # report digests: candidate, baseline
    engine: EngineSignature | None  # None when the reports disagree
    verdict: Verdict
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    ratings: RatingEvidence | None  # the votes that were counted; None when none are asked for or in yet
    n_approvals: int  # approvals the gate asks for before a promotion
    created_at: str


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
