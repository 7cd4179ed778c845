"""Whether answers and metrics were fixed before they were known: what a cache and scoring again could undo.

A gate must have been declared before the candidate first gave the answers it decides on, also where a later session
took them from the cache; and the metrics must be those that the suite named when the answers were given.
"""

from __future__ import annotations

from llmops.errors import InvalidEvidence
from llmops.evals.gate.config import GateConfig
from llmops.evals.gate.declare import began_at, declared_at
from llmops.ledger import Ledger
from llmops.records import Report
from llmops.registry.adapters import Registry
from llmops.schema import short


def origin_faults(registry: Registry, gate: GateConfig, reports: tuple[str, str]) -> list[str]:
    """What was fixed too late in the reports with these digests (candidate's, baseline's); empty when nothing was."""
    try:
        candidate, baseline = (registry.store.get_record(Report, digest) for digest in reports)
    except InvalidEvidence:
        return []  # said where the reports themselves are looked at
    faults = _known_before(registry.ledger, gate, candidate)
    return faults + [
        fault for report in (candidate, baseline) for fault in _other_metrics(registry.ledger, report)
    ]


def _known_before(ledger: Ledger, gate: GateConfig, report: Report) -> list[str]:
    declared = declared_at(ledger, gate.digest)
    for session in report.cached_from:
        began = began_at(ledger, session)
        if declared is None or began is None or declared > began:
            return [
                f"answers of {report.system} are of session {session}, when gate {gate.name}@{short(gate.digest)} "
                "was not declared; evaluate with --no-cache"
            ]
    return []


def _other_metrics(ledger: Ledger, report: Report) -> list[str]:
    started = [e for e in ledger.events("run.started") if e.body.get("run") == report.session]
    asked = started[0].body.get("suites", {}).get(report.suite) if started else None
    if asked in (None, report.suite_digest):
        return []
    return [
        f"report of {report.system}: suite {report.suite} was {short(asked)} when session {report.session} began, "
        "and was scored again by another state of it; evaluate again"
    ]
