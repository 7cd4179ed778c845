"""Reports that were stored, found by what people call them and read back with every answer verified.

Scores are computed anew from the completions: two reports are compared by one implementation, whatever made them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmops.engines.completions import load_samples
from llmops.errors import BadRequest, ConfigError, InvalidEvidence, LlmopsError
from llmops.evals.evidence import Result, engine_fault, scores_of
from llmops.evals.reports.comparison import Comparison, How, compare
from llmops.evals.session import find_session
from llmops.evals.suite import SuiteConfig
from llmops.records import Case, Report
from llmops.registry.adapters import Registry
from llmops.schema import short
from llmops.settings import Workspace, load_yaml

if TYPE_CHECKING:
    from llmops.evals.metrics import Metric

MIN_PREFIX = 6  # characters of a report's digest


@dataclass(frozen=True)
class Wanted:
    """Which comparison is asked for: both sides as typed, and what narrows or settles it.

    `suite` is a suite's name; `suite_files` say how it scores, where it is not among the workspace's suites.
    """

    baseline: str
    candidate: str
    session: str | None = None
    suite: str | None = None
    suite_files: tuple[Path, ...] = ()
    by: str | None = None


@dataclass(frozen=True, eq=False)
class Held:
    """A comparison of stored reports: `faults` make it no evidence, `warnings` are what a reader must know."""

    comparison: Comparison
    faults: tuple[str, ...]
    warnings: tuple[str, ...]


def compare_stored(workspace: Workspace, wanted: Wanted) -> list[Held]:
    """Compare two systems on every suite that both answered.

    Raises:
        BadRequest: a side, a suite or a metric is not known.
        InvalidEvidence: the reports did not answer the same cases, or their files were altered.
    """
    registry = Registry.of(workspace)
    reports = _reports(registry)
    before = _side(reports, wanted.baseline, wanted)
    after = _side(reports, wanted.candidate, wanted)
    suites = [name for name in before if name in after]
    if not suites:
        raise BadRequest(
            f"compare: {wanted.baseline} answered {_listed(before)}, {wanted.candidate} {_listed(after)}; "
            "name two systems that answered one suite"
        )
    return [_held(registry, workspace, (before[name], after[name]), wanted) for name in suites]


@dataclass(frozen=True, eq=False)
class Scoring:
    """How a suite scores: its metrics, and whether cases of one group count as alike."""

    metrics: tuple[Metric, ...]
    clustered: bool

    def clusters(self, cases: Sequence[Case]) -> tuple[str, ...] | None:
        """Each case's cluster; None where the suite takes cases as independent."""
        return tuple(case.group for case in cases) if self.clustered else None


def find_scoring(workspace: Workspace, report: Report, suite_files: Sequence[Path] = ()) -> Scoring:
    """How a report's suite scores, from a file that is given, the one it was evaluated with, or one in `evals/suites`.

    Raises:
        ConfigError: a given file cannot be used.
        BadRequest: no file is that suite's.
    """
    from llmops.evals.metrics.config import resolve_metrics

    for path in suite_files:
        config = load_yaml(path, SuiteConfig)
        if config.name == report.suite:
            return Scoring(resolve_metrics(config.metrics, path.parent), config.cluster is not None)
    for path in _known_files(workspace, report):
        try:
            config = load_yaml(path, SuiteConfig)
        except ConfigError:  # gone since, or another suite's trouble
            continue
        if config.name == report.suite:
            return Scoring(resolve_metrics(config.metrics, path.parent), config.cluster is not None)
    raise BadRequest(
        f"suite {report.suite}: no file in {workspace.suites} has that name; give its file with --suite-file"
    )


def _known_files(workspace: Workspace, report: Report) -> Iterator[Path]:
    try:
        suites = find_session(workspace, report.session).record().suites
    except LlmopsError:  # a session's folder may be gone, its report stays
        suites = ()
    yield from (workspace.root / suite.path for suite in suites if suite.name == report.suite)
    yield from sorted(workspace.suites.glob("*.yaml"))


def load_result(
    registry: Registry, report: Report, metrics: Sequence[Metric]
) -> tuple[tuple[Case, ...], Result]:
    """A report's cases and its samples, verified and scored again."""
    found = load_samples(registry.store, report)
    cases = tuple(case for case, _ in found)
    samples = tuple(own for _, own in found)
    return cases, Result(report, samples, scores_of(metrics, cases, samples))


def _reports(registry: Registry) -> list[tuple[str, Report]]:
    """All stored reports with their digests, oldest first; one that is gone or altered is an error when it is named."""
    events = registry.ledger.events("report.stored")
    digests = dict.fromkeys(str(event.body["report"]) for event in events)
    found = []
    for digest in digests:
        try:
            found.append((digest, registry.store.get_record(Report, digest)))
        except InvalidEvidence:
            continue
    return found


def _side(reports: Sequence[tuple[str, Report]], name: str, wanted: Wanted) -> dict[str, Report]:
    """The newest report that a side names on each suite, by the suite's name."""
    session, colon, system = name.rpartition(":")
    named = [r for digest, r in reports if len(name) >= MIN_PREFIX and digest.startswith(name)]
    if not named and not colon and any(r.session == name for _, r in reports):
        last = [r for _, r in reports if r.session == name][-1]  # a session stands for its candidate
        session, system = name, last.system
    if not named:
        session = session or wanted.session or (reports[-1][1].session if reports else "")
        own = [r for _, r in reports if r.session == session]
        exact = [r for r in own if r.system == system]
        named = exact or [r for r in own if r.system.startswith(system)]
    if wanted.suite is not None:
        named = [r for r in named if r.suite == wanted.suite]
    systems = sorted({r.system for r in named})
    if len(systems) != 1:
        known = sorted({r.system for _, r in reports if r.session == session})
        which = (
            f"is one of {', '.join(systems)}"
            if systems
            else f"names no report; {session} has {_listed(known)}"
        )
        raise BadRequest(f"compare: {name} {which}; write SYSTEM, SESSION:SYSTEM or a report's digest")
    return {report.suite: report for report in named}


def _listed(names: Sequence[str] | dict[str, Report]) -> str:
    return ", ".join(names) or "nothing"


def _held(registry: Registry, workspace: Workspace, reports: tuple[Report, Report], wanted: Wanted) -> Held:
    scoring = find_scoring(workspace, reports[1], wanted.suite_files)
    metrics = scoring.metrics
    known = [metric.name for metric in metrics]
    if wanted.by is not None and wanted.by not in known:
        raise BadRequest(
            f"compare: {wanted.by} is no metric of suite {reports[1].suite}; it has {', '.join(known)}"
        )
    (cases, before), (own, after) = (load_result(registry, report, metrics) for report in reports)
    _require_same(cases, own, reports)
    place = {case.digest: i for i, case in enumerate(cases)}
    samples = tuple(before.samples[place[case.digest]] for case in own)
    aligned = Result(before.report, samples, before.scores)
    how = How(wanted.by, scoring.clusters(own))
    found = compare(metrics, own, (aligned, after), how)
    if found is None:
        raise InvalidEvidence(
            f"compare: fewer than 2 cases of suite {reports[1].suite} were answered by both; evaluate again"
        )
    return Held(found, tuple(_faults(*reports)), tuple(_warnings(*reports)))


def _require_same(cases: Sequence[Case], own: Sequence[Case], reports: tuple[Report, Report]) -> None:
    theirs, ours = {case.digest for case in cases}, {case.digest for case in own}
    if theirs != ours:
        raise InvalidEvidence(
            f"compare: {len(theirs - ours)} of {len(theirs)} cases of {reports[0].system} and {len(ours - theirs)} of "
            f"{len(ours)} of {reports[1].system} have no counterpart; compare reports that answered the same cases"
        )


def _faults(before: Report, after: Report) -> list[str]:
    """What makes the difference one of more than the models."""
    faults = engine_fault(before.engine, after.engine, "between the reports")
    for name in ("decoding", "n_samples"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            faults.append(f"the reports differ in {name}: {old} and {new}")
    return faults + [f"report of {r.system}: {reason}" for r in (before, after) for reason in r.invalid]


def _warnings(before: Report, after: Report) -> list[str]:
    found = []
    if before.session != after.session:
        found.append(
            f"the answers come from two sessions, {before.session} and {after.session}: what changed between them "
            "(load, machine, cache) counts as a difference"
        )
    if before.suite_digest != after.suite_digest:
        found.append(
            f"the suite's settings or labels changed: {short(before.suite_digest)} and {short(after.suite_digest)}"
        )
    if before.base != after.base:
        found.append(f"the bases differ: {short(before.base)} and {short(after.base)}")
    return found
