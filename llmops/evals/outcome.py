"""What a finished evaluation leaves: reports in the store and the ledger, figures in the tracker, files in the session.

Reads completions that are kept already; asks nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llmops.engines.completions import put_completions
from llmops.engines.endpoint import EndpointStatus, System
from llmops.errors import ConfigError
from llmops.evals.evidence import (
    Result,
    Samples,
    clusters_of,
    completion_faults,
    leak_fault,
    n_errored_cases,
    results_of,
    scores_of,
)
from llmops.evals.reports.comparison import Evaluated
from llmops.evals.reports.files import write_files
from llmops.evals.session import Session
from llmops.evals.suite import Suite
from llmops.records import AdapterRecord, Report
from llmops.registry.adapters import Registry
from llmops.schema import canonical_json
from llmops.settings import Workspace, now

METRICS_FILE = "metrics.jsonl"

log = logging.getLogger("llmops.evals")


@dataclass(frozen=True)
class Taken:
    """A finished session: who answered, on which engine, and what is wrong with it for all systems alike."""

    session: Session
    status: EndpointStatus
    systems: tuple[tuple[System, AdapterRecord | None], ...]
    faults: tuple[str, ...]


def evaluated(registry: Registry, taken: Taken, suite: Suite, path: Path) -> Evaluated:
    """Score what a session kept of a suite, whose file is at `path`."""
    kept = taken.session.completions(suite)
    n = suite.config.samples
    results = []
    for system, record in taken.systems:
        samples = tuple(tuple(kept[case.digest, system.model, i] for i in range(n)) for case in suite.cases)
        results.append(_result(registry, taken, suite, (system, record, samples)))
    return Evaluated(suite, tuple(results), str(path))


def _result(
    registry: Registry,
    taken: Taken,
    suite: Suite,
    answered: tuple[System, AdapterRecord | None, tuple[Samples, ...]],
) -> Result:
    system, record, samples = answered
    scores = scores_of(suite.metrics, suite.cases, samples)
    faults = list(taken.faults) + completion_faults(
        samples, system.digest, system.prompt_contract, suite.config.max_errored_frac
    )
    if record is not None:
        faults += leak_fault(registry, record, suite.cases)
    completions = [c for own in samples for c in own]
    report = Report(
        suite=suite.config.name,
        suite_digest=suite.digest,
        system=system.model,
        model=system.digest,
        base=taken.status.base.digest,
        prompt_contract=system.prompt_contract,
        engine=taken.status.engine,
        session=taken.session.name,
        decoding=suite.config.decoding.model_dump(mode="json"),
        cases=suite.cases_digest,
        completions=put_completions(registry.store, suite.cases, completions),
        n_cases=len(suite.cases),
        n_samples=suite.config.samples,
        n_errored=n_errored_cases(samples),
        metrics=results_of(scores, clusters_of(suite.clusters, samples)),
        invalid=tuple(faults),
        created_at=now(),
        n_cached=sum(c.cached for c in completions),
        cached_from=tuple(sorted({c.origin for c in completions if c.cached and c.origin})),
        cluster=suite.config.cluster,
    )
    return Result(report, samples, scores)


def publish(
    workspace: Workspace,
    session: Session,
    found: Sequence[Evaluated],
    records_of: Callable[[Evaluated], Sequence[AdapterRecord | None]],
) -> list[Report]:
    """Store reports, show their figures, write the session's files; `records_of` gives each system's adapter."""
    registry = Registry.of(workspace)
    for one in found:
        for result in one.results:
            _store(registry, result.report)
        _show_in_tracker(registry, workspace, records_of(one), one.results)
    _write_metrics(session, found)
    write_files(session.folder, found)
    return [result.report for one in found for result in one.results]


def _store(registry: Registry, report: Report) -> None:
    """Keep a report, and name it in the ledger."""
    digest = registry.store.put_record(report)
    body = {"report": digest, "suite": report.suite, "model": report.model, "session": report.session}
    registry.ledger.append("report.stored", body)


def _show_in_tracker(
    registry: Registry,
    workspace: Workspace,
    records: Sequence[AdapterRecord | None],
    results: Sequence[Result],
) -> None:
    """Show each adapter's figures beside its training run; a tracker that is not there takes nothing from a report."""
    from llmops.tracking import log_report_metrics

    for record, result in zip(records, results, strict=True):
        run = registry.lineage(record).tracking_run if record else None
        if run is None or not result.report.metrics:
            continue
        suite = result.report.suite
        figures = {f"eval/{suite}/{name}": m.value for name, m in result.report.metrics.items()}
        try:
            log_report_metrics(workspace, run, figures)
        except ConfigError as error:
            log.warning("%s: figures are not shown in the tracker: %s", result.report.system, error)


def _write_metrics(session: Session, suites: Sequence[Evaluated]) -> None:
    """Write `metrics.jsonl`: one line a suite, system and metric, each with its signature."""
    lines = [
        {
            "suite": r.report.suite, "system": r.report.system, "metric": name, **asdict(metric),
            "report": r.report.digest(),
        }
        for suite in suites
        for r in suite.results
        for name, metric in r.report.metrics.items()
    ]  # fmt: skip
    (session.folder / METRICS_FILE).write_bytes(b"".join(canonical_json(line) + b"\n" for line in lines))
