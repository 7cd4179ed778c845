"""Running a suite: systems are loaded, asked, scored, and leave one report each.

Reads the suite, the registry and an endpoint; writes the session's folder, the store (kind `completions`,
reports) and the ledger (`report.stored`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llmops.engines.completions import put_completions
from llmops.engines.endpoint import Endpoint, EndpointStatus, Patience, System, engine_digest
from llmops.engines.systems import load_adapters, system_of
from llmops.errors import BadRequest, ConfigError, CouldNotRun, LlmopsError
from llmops.evals.evidence import (
    Result,
    clusters_of,
    completion_faults,
    engine_fault,
    leak_fault,
    n_errored_cases,
    results_of,
    scores_of,
)
from llmops.evals.generate import Job, generate
from llmops.evals.reports.comparison import Evaluated
from llmops.evals.reports.files import PAGE_FILE, write_files
from llmops.evals.session import Session, find_session, new_session
from llmops.evals.suite import Suite, load_suite
from llmops.records import AdapterRecord, Report
from llmops.registry.adapters import Registry
from llmops.registry.names import name_states
from llmops.schema import Progress, canonical_json, no_progress
from llmops.settings import Workspace, now

METRICS_FILE = "metrics.jsonl"

log = logging.getLogger("llmops.evals")


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate: adapters by reference, beside the base and every champion of the same base.

    `session` names one to go on with: what it has answers to is not asked again.
    """

    endpoint: str
    adapters: tuple[str, ...] = ("latest",)
    session: str | None = None
    concurrency: int = 16
    patience: Patience = field(default_factory=Patience)


def evaluate(
    suite_path: Path, request: EvalRequest, workspace: Workspace, progress: Progress = no_progress
) -> list[Report]:
    """Put a suite to the base, the champions and the adapters asked for; one report each, in that order.

    Reports that are no evidence are stored too, with the reasons; errors below leave none.

    Raises:
        BadRequest: the suite, an adapter or the session does not exist or does not fit.
        InvalidEvidence: the suite's data was altered, or the endpoint refused an adapter.
        CouldNotRun: the endpoint does not answer, or went away; `session` in a next request goes on from
            there.
    """
    registry = Registry.of(workspace)
    suite = load_suite(suite_path, registry)
    adapters = _adapters(registry, request.adapters)
    session = find_session(workspace, request.session) if request.session else new_session(workspace)
    with session.locked(), _noted(registry, session):
        taken = asyncio.run(_take(suite, request, adapters, session, progress))
        results = [_result(registry, taken, system, record) for system, record in taken.systems]
        for result in results:
            _store(registry, result.report)
        _track(registry, workspace, taken, results)
        _write_metrics(session, results)
        write_files(session.folder, [Evaluated(suite, tuple(results), str(suite_path))])
    return [result.report for result in results]


@contextmanager
def _noted(registry: Registry, session: Session) -> Iterator[None]:
    """The session's start and end in the ledger, so that `llmops status` can say what is under way."""
    registry.ledger.append("run.started", {"run": session.name})
    try:
        yield
    except BaseException as error:
        with suppress(
            LlmopsError
        ):  # a full disk takes no event either, and the first error is the one to be seen
            registry.ledger.append("run.failed", {"run": session.name, "error": type(error).__name__})
        raise
    registry.ledger.append("run.finished", {"run": session.name})


def report_page(workspace: Workspace, session: str) -> Path:
    """Where the HTML page of a session lies."""
    return workspace.runs / session / PAGE_FILE


@dataclass(frozen=True)
class _Taken:
    """A finished session: who answered, on which engine, and what is wrong with it for all systems alike."""

    suite: Suite
    session: Session
    status: EndpointStatus
    systems: tuple[tuple[System, AdapterRecord | None], ...]
    faults: tuple[str, ...]


def _adapters(registry: Registry, references: Sequence[str]) -> list[AdapterRecord]:
    """The champions of the asked adapters' base, then the adapters themselves, each once and verified."""
    if not references:
        raise BadRequest("eval: no adapter is named; name one, or `latest`")
    asked = [registry.adapter(reference) for reference in references]
    bases = {record.base for record in asked}
    if len(bases) > 1:
        raise BadRequest(
            f"eval: {', '.join(r.model_name for r in asked)} have different bases; evaluate them one by one"
        )
    states = name_states(registry.store, registry.ledger).values()
    champions = [registry.adapter(s.champion_adapter) for s in states if s.champion_adapter]
    wanted = {record.adapter: record for record in champions if record.base in bases}
    # An adapter that is asked for stands among the candidates, at its own place, also where it is a champion.
    for record in asked:
        wanted.pop(record.adapter, None)
        wanted[record.adapter] = record
    for record in wanted.values():
        registry.verify(record)
    return list(wanted.values())


async def _take(
    suite: Suite,
    request: EvalRequest,
    adapters: Sequence[AdapterRecord],
    session: Session,
    progress: Progress,
) -> _Taken:
    """Load the systems, generate, and compare the engine before and after."""
    async with Endpoint(request.endpoint, request.concurrency, request.patience) as endpoint:
        await load_adapters(endpoint, adapters, progress)
        before = await endpoint.status()
        systems = _systems(before, adapters)
        begun = session.begin(suite.config.name, suite.digest, before.engine)
        job = Job(suite, tuple(s for s, _ in systems), engine_digest(before.engine), request.concurrency)
        await generate(endpoint, job, session, progress)
        after = await _status_after(endpoint, session)
    faults = engine_fault(begun.engine, before.engine, "since the session began")
    faults += engine_fault(before.engine, after.engine, "during the session")
    return _Taken(suite, session, before, systems, tuple(faults))


def _systems(
    status: EndpointStatus, adapters: Sequence[AdapterRecord]
) -> tuple[tuple[System, AdapterRecord | None], ...]:
    """The base first, then the adapters, by their names at the endpoint."""
    return ((status.base, None), *((system_of(record, status), record) for record in adapters))


async def _status_after(endpoint: Endpoint, session: Session) -> EndpointStatus:
    try:
        return await endpoint.status()
    except CouldNotRun as error:
        raise CouldNotRun(f"{error}; all answers are kept, finish with --resume {session.name}") from error


def _result(registry: Registry, taken: _Taken, system: System, record: AdapterRecord | None) -> Result:
    suite, kept = taken.suite, taken.session.completions()
    n = suite.config.samples
    samples = tuple(tuple(kept[case.digest, system.model, i] for i in range(n)) for case in suite.cases)
    scores = scores_of(suite.metrics, suite.cases, samples)
    faults = list(taken.faults) + completion_faults(
        samples, system.digest, system.prompt_contract, suite.config.max_errored_frac
    )
    if record is not None:
        faults += leak_fault(registry, record, suite.cases)
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
        completions=put_completions(registry.store, suite.cases, [c for own in samples for c in own]),
        n_cases=len(suite.cases),
        n_samples=n,
        n_errored=n_errored_cases(samples),
        metrics=results_of(scores, clusters_of(suite.clusters, samples)),
        invalid=tuple(faults),
        created_at=now(),
    )
    return Result(report, samples, scores)


def _store(registry: Registry, report: Report) -> None:
    digest = registry.store.put_record(report)
    body = {"report": digest, "suite": report.suite, "model": report.model, "session": report.session}
    registry.ledger.append("report.stored", body)


def _track(registry: Registry, workspace: Workspace, taken: _Taken, results: Sequence[Result]) -> None:
    """Show each adapter's figures beside its training run; a tracker that is not there takes nothing from a report."""
    from llmops.tracking import log_report_metrics

    for (_, record), result in zip(taken.systems, results, strict=True):
        run = registry.lineage(record).tracking_run if record else None
        if run is None or not result.report.metrics:
            continue
        suite = result.report.suite
        figures = {f"eval/{suite}/{name}": m.value for name, m in result.report.metrics.items()}
        try:
            log_report_metrics(workspace, run, figures)
        except ConfigError as error:
            log.warning("%s: figures are not shown in the tracker: %s", result.report.system, error)


def _write_metrics(session: Session, results: Sequence[Result]) -> None:
    """One line a system and metric, each with its signature."""
    lines = [
        {"system": r.report.system, "metric": name, **asdict(metric), "report": r.report.digest()}
        for r in results
        for name, metric in r.report.metrics.items()
    ]
    (session.folder / METRICS_FILE).write_bytes(b"".join(canonical_json(line) + b"\n" for line in lines))
