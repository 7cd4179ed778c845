"""Claims about how good an adapter was found to be: reports, decisions of gates, releases.

Reads the records that evaluation, gates and releases left in the store, through the ledger's events about them.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmops.card.claim import Claim, one_line
from llmops.records import AdapterRecord, Check, Decision, Release, Report
from llmops.registry.adapters import Registry


def score_claims(registry: Registry, record: AdapterRecord) -> Iterator[Claim]:
    """Every report about the adapter with its intervals; of each suite and engine the newest is shown.

    Raises:
        InvalidEvidence: a report or its completions are missing or were altered.
    """
    stored = [str(e.body["report"]) for e in registry.ledger.events("report.stored")]
    counted = [d for decision in _decisions(registry, record).values() for d in decision.reports]
    found = {d: registry.store.get_record(Report, d) for d in dict.fromkeys((*counted, *stored))}
    reports = {digest: report for digest, report in found.items() if report.model == record.adapter}
    newest = {(r.suite_digest, r.engine): digest for digest, r in reports.items()}
    for digest, report in reports.items():
        registry.store.verify("completions", report.completions)
        shown = newest[report.suite_digest, report.engine] == digest
        for text in _report(report):
            yield Claim("Scores", text, "report", digest, shown)


def _report(report: Report) -> Iterator[str]:
    engine = report.engine
    packed = f", {engine.quantization}" if engine.quantization else ""
    on = (
        f"suite {report.suite}, {report.n_cases} cases ({report.n_errored} errored), engine {engine.engine} "
        f"{engine.version} in {engine.dtype}{packed} on {engine.device}"
    )
    for reason in report.invalid:
        yield f"No evidence: {one_line(reason)} ({on})"
    for name, found in sorted(report.metrics.items()):
        interval = f"[{found.low:.4g}, {found.high:.4g}] at {found.level:.0%}"
        yield f"{name} {found.value:.4g} {interval}, {on}; {one_line(found.signature)}"


def gate_claims(registry: Registry, record: AdapterRecord) -> Iterator[Claim]:
    """Every decision about the adapter as a candidate; the newest about each public name is shown.

    Raises:
        InvalidEvidence: a decision is missing or was altered.
    """
    decisions = _decisions(registry, record)
    newest = {decision.public_name: digest for digest, decision in decisions.items()}
    for digest, decision in decisions.items():
        shown = newest[decision.public_name] == digest
        for text in _decision(decision):
            yield Claim("Gate", text, "decision", digest, shown)


def _decisions(registry: Registry, record: AdapterRecord) -> dict[str, Decision]:
    """The decisions about the adapter as a candidate by digest, oldest first."""
    events = registry.ledger.events("decision.made")
    digests = dict.fromkeys(str(e.body["decision"]) for e in events if e.body["candidate"] == record.adapter)
    return {digest: registry.store.get_record(Decision, digest) for digest in digests}


def _decision(decision: Decision) -> Iterator[str]:
    against = "the base" if decision.baseline == decision.base else f"adapter {decision.baseline[:12]}"
    yield (
        f"Gate {decision.gate} for `{decision.public_name}` against {against}, {decision.created_at}: "
        f"{decision.verdict}"
    )
    for check in decision.checks:
        yield _check(check)
    for reason in decision.reasons:
        yield f"Reason: {one_line(reason)}"
    if decision.ratings:
        votes = decision.ratings
        yield f"Counted {votes.n_votes} votes of {votes.n_raters} people on {votes.n_rated} of {votes.n_items} items"


def _check(check: Check) -> str:
    return (
        f"{check.metric}, {check.kind} by {check.threshold:g}: {check.candidate:.4g} against {check.baseline:.4g}, "
        f"difference {check.difference:+.4g} [{check.low:+.4g}, {check.high:+.4g}] at {check.level:.0%} over "
        f"{check.n_cases} cases: {check.verdict}"
    )


def release_claims(registry: Registry, record: AdapterRecord) -> Iterator[Claim]:
    """Every time a public name came to stand for the adapter.

    Raises:
        InvalidEvidence: a release's record is missing or was altered.
    """
    for event in registry.ledger.events("release.activated"):
        if event.body["adapter"] != record.adapter:
            continue
        digest = str(event.body["release"])
        release = registry.store.get_record(Release, digest)
        reason = f", reason: {one_line(release.reason)}" if release.reason else ""
        text = (
            f"Released as `{release.public_name}` by {release.kind}, asked for {release.created_at}{reason}"
        )
        yield Claim("Releases", text, "release", digest)
