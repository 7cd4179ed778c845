"""Scoring a session again: other metrics, the same completions. Nothing is asked.

What a session answered stays fixed: cases, decoding and samples of a suite must be what they were. A report that was
no evidence stays none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmops.engines.completions import load_samples, put_completions
from llmops.errors import BadRequest
from llmops.evals.evidence import Result, Samples, clusters_of, completion_faults, results_of, scores_of
from llmops.evals.finished import session_reports
from llmops.evals.outcome import publish
from llmops.evals.reports.comparison import Evaluated
from llmops.evals.session import Session, find_session
from llmops.evals.suite import Suite, load_suite
from llmops.records import AdapterRecord, Report
from llmops.registry.adapters import Registry
from llmops.settings import Workspace, now


def rescore(name: str, workspace: Workspace, files: Sequence[Path] = ()) -> list[Report]:
    """Score a finished session by its suites as their files say today; one new report a suite and system.

    Args:
        name: the session.
        workspace: where it ran.
        files: its suites' files, where they are not where they were.

    Raises:
        BadRequest: no such session, it was never finished, or cases, decoding or samples of a suite are no longer those
            that it answered.
        InvalidEvidence: its completions were altered.
    """
    registry, session = Registry.of(workspace), find_session(workspace, name)
    with session.locked():
        reports = _reports(registry, session)
        paths = files or [workspace.root / suite.path for suite in session.record().suites]
        suites = [load_suite(path, registry) for path in paths]
        _require_all(session, suites)
        found = [
            Evaluated(
                suite, tuple(_again(registry, suite, old) for old in reports[suite.config.name]), str(path)
            )
            for suite, path in zip(suites, paths, strict=True)
        ]
        return publish(
            workspace, session, found, lambda one: [_adapter(registry, r.report) for r in one.results]
        )


def _reports(registry: Registry, session: Session) -> dict[str, list[Report]]:
    """The newest report of each system by suite, in the order they were first made."""
    newest = session_reports(registry, session.name)
    if not newest:
        raise BadRequest(
            f"session {session.name}: has no reports to score again; finish it with `llmops eval` "
            f"and --resume {session.name}"
        )
    found: dict[str, list[Report]] = {}
    for report in newest:
        found.setdefault(report.suite, []).append(report)
    return found


def _require_all(session: Session, suites: Sequence[Suite]) -> None:
    asked, named = [s.name for s in session.record().suites], [s.config.name for s in suites]
    if sorted(asked) != sorted(named):
        raise BadRequest(
            f"session {session.name}: answered {', '.join(asked)}, not {', '.join(named)}; name the files of its suites"
        )


def _again(registry: Registry, suite: Suite, old: Report) -> Result:
    """A report's completions scored by the suite of today."""
    _require_same(suite, old)
    samples = tuple(own for _, own in load_samples(registry.store, old))
    _require_logprobs(suite, old, samples)
    scores = scores_of(suite.metrics, suite.cases, samples)
    faults = completion_faults(samples, old.model, old.prompt_contract, suite.config.max_errored_frac)
    new = replace(
        old,
        completions=put_completions(registry.store, suite.cases, [c for own in samples for c in own]),
        suite_digest=suite.digest,
        metrics=results_of(scores, clusters_of(suite.clusters, samples)),
        invalid=tuple(dict.fromkeys((*old.invalid, *faults))),
        created_at=now(),
        cluster=suite.config.cluster,
    )
    return Result(new, samples, scores)


def _require_same(suite: Suite, old: Report) -> None:
    """Refuse a suite that asks something else now.

    Raises:
        BadRequest: names what changed.
    """
    now_says = {
        "cases": suite.cases_digest,
        "decoding": suite.config.decoding.model_dump(mode="json"),
        "n_samples": suite.config.samples,
    }
    for name, value in now_says.items():
        if getattr(old, name) != value:
            what = "samples" if name == "n_samples" else name
            raise BadRequest(
                f"suite {suite.config.name}: its {what} changed since session {old.session}; "
                "scoring again asks nothing, so run `llmops eval`"
            )


def _require_logprobs(suite: Suite, old: Report, samples: Sequence[Samples]) -> None:
    lacking = any(c.status == "answered" and c.reference_logprob is None for own in samples for c in own)
    if suite.needs_reference_logprobs and lacking:
        raise BadRequest(
            f"suite {suite.config.name}: its metrics need log-probabilities of references, which session {old.session} "
            "did not ask for; run `llmops eval`"
        )


def _adapter(registry: Registry, report: Report) -> AdapterRecord | None:
    return None if report.model == report.base else registry.adapter(report.model)
