"""Reviewing evidence: the two reports a gate decides on, and everything that keeps them from being evidence.

Each fault is a sentence for the decision. A report that is missing altogether is an error instead: there is
nothing to decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from llmops.engines.completions import COMPLETIONS_FILE, read_completions
from llmops.errors import InvalidEvidence
from llmops.evals.compare import Paired, pair
from llmops.evals.evidence import (
    Samples,
    clusters_of,
    completion_faults,
    is_answered,
    leak_fault,
    n_errored_cases,
    prompt_digest,
    results_of,
    scores_of,
)
from llmops.evals.suite import Suite, SuiteConfig, load_suite
from llmops.ledger import Event
from llmops.records import AdapterRecord, EngineSignature, Report
from llmops.registry.adapters import Registry
from llmops.schema import short
from llmops.settings import load_yaml

# What must be the same of both reports for their difference to be about the models alone.
SHARED = ("suite", "suite_digest", "base", "engine", "session", "decoding", "cases", "n_cases", "n_samples")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Reports (digests: candidate, baseline) and what they say; `paired` is None when there are faults.

    `answers` holds both texts (candidate's, baseline's) of each case that both answered, by digest of its prompt.
    """

    reports: tuple[str, str]
    session: str
    engine: EngineSignature | None
    paired: Paired | None
    faults: tuple[str, ...]
    answers: dict[str, tuple[str, str]] = field(default_factory=dict)


def review(
    registry: Registry, suite_path: Path, candidate: AdapterRecord, baseline: str, session: str | None
) -> Evidence:
    """The newest pair of reports about `candidate` and `baseline` (digest) on a suite, checked against everything.

    Raises:
        ConfigError: the suite's file cannot be used.
        InvalidEvidence: there is no such pair.
    """
    name = load_yaml(suite_path, SuiteConfig).name
    digests, session = _find(registry, name, (candidate.adapter, baseline), session)
    faults: list[str] = []
    reports = [_report(registry, digest, faults) for digest in digests]
    theirs, ours = reports[1], reports[0]
    if ours is None or theirs is None:
        return Evidence(digests, session, None, None, tuple(faults))
    faults += _disagreements(ours, theirs)
    faults += [f"report of {r.system}: {reason}" for r in (ours, theirs) for reason in r.invalid]
    faults += _candidate_faults(registry, candidate, ours)
    suite = _suite(registry, suite_path, ours, faults)
    engine = ours.engine if ours.engine == theirs.engine else None
    if suite is None or faults:
        return Evidence(digests, session, engine, None, tuple(dict.fromkeys(faults)))
    faults += leak_fault(registry, candidate, suite.cases)
    completions = [_completions(registry, suite, report, faults) for report in (theirs, ours)]
    if faults:
        return Evidence(digests, session, engine, None, tuple(faults))
    paired = pair(suite.metrics, suite.cases, completions[0], completions[1], suite.clusters)
    if paired is None:
        faults.append("fewer than 2 cases were answered by both systems")
    return Evidence(digests, session, engine, paired, tuple(faults), _answers(suite, *completions))


def _answers(suite: Suite, theirs: list[Samples], ours: list[Samples]) -> dict[str, tuple[str, str]]:
    return {
        prompt_digest(case.messages): (b[0].text, a[0].text)
        for case, a, b in zip(suite.cases, theirs, ours, strict=True)
        if is_answered(a) and is_answered(b)
    }


def _find(
    registry: Registry, suite: str, models: tuple[str, str], session: str | None
) -> tuple[tuple[str, str], str]:
    """Report digests of both models (candidate first), and the newest session that evaluated the candidate."""
    events = [e for e in registry.ledger.events("report.stored") if e.body["suite"] == suite]
    mine = [e for e in events if e.body["model"] == models[0] and session in (None, e.body["session"])]
    if not mine:
        where = f" in session {session}" if session else ""
        raise InvalidEvidence(
            f"gate: no report of {short(models[0])} on suite {suite}{where}; run `llmops eval` with that adapter"
        )
    chosen = str(mine[-1].body["session"])
    theirs = [e for e in events if e.body["model"] == models[1] and e.body["session"] == chosen]
    if not theirs:
        raise InvalidEvidence(
            f"gate: session {chosen} has no report of the baseline {short(models[1])}; run `llmops eval` again, "
            "with --adapter for one that is neither base nor champion"
        )
    return (_digest(mine[-1]), _digest(theirs[-1])), chosen


def _digest(event: Event) -> str:
    return str(event.body["report"])


def _report(registry: Registry, digest: str, faults: list[str]) -> Report | None:
    try:
        return registry.store.get_record(Report, digest)
    except InvalidEvidence as error:
        faults.append(str(error))
        return None


def _disagreements(ours: Report, theirs: Report) -> list[str]:
    return [
        f"the reports differ in {name}: {_brief(getattr(theirs, name))} and {_brief(getattr(ours, name))}"
        for name in SHARED
        if getattr(ours, name) != getattr(theirs, name)
    ]


def _brief(value: object) -> str:
    text = str(value.to_pairs() if isinstance(value, EngineSignature) else value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _candidate_faults(registry: Registry, candidate: AdapterRecord, report: Report) -> list[str]:
    """The adapter's own files, and whether the report is about them."""
    faults = []
    try:
        registry.verify(candidate)
        registry.contract(candidate)
    except InvalidEvidence as error:
        faults.append(str(error))
    if report.base != candidate.base:
        faults.append(f"the candidate's base is {short(candidate.base)}, the report's {short(report.base)}")
    if report.prompt_contract != candidate.prompt_contract:
        faults.append("the candidate's prompt contract is not the report's")
    return faults


def _suite(registry: Registry, path: Path, report: Report, faults: list[str]) -> Suite | None:
    """The suite as its file and data say today, which must be what was evaluated."""
    try:
        suite = load_suite(path, registry)
    except InvalidEvidence as error:
        faults.append(str(error))
        return None
    if suite.digest != report.suite_digest:
        faults.append(
            f"suite {report.suite} is now {short(suite.digest)}, the reports answered {short(report.suite_digest)}: "
            "its file or its data changed; run `llmops eval` again"
        )
    return suite


def _completions(registry: Registry, suite: Suite, report: Report, faults: list[str]) -> list[Samples]:
    """A report's samples of each case in the suite's order, verified and scored again."""
    try:
        folder = registry.store.verify("completions", report.completions)
        found = read_completions((folder / COMPLETIONS_FILE).read_bytes(), f"report of {report.system}")
    except (InvalidEvidence, OSError) as error:
        faults.append(str(error))
        return []
    n = suite.config.samples
    expected = [(case.digest, i) for case in suite.cases for i in range(n)]
    if [(c.case, c.sample) for c in found] != expected:
        faults.append(
            f"report of {report.system}: its completions do not answer the suite's cases one by one"
        )
        return []
    wrong = {c.system for c in found if c.system != report.system}
    if wrong:
        faults.append(f"report of {report.system}: holds completions of {sorted(wrong)[0]}")
    samples = [tuple(found[i : i + n]) for i in range(0, len(found), n)]
    own = completion_faults(samples, report.model, report.prompt_contract, suite.config.max_errored_frac)
    own += _recount(suite, report, samples) + _silence(samples)
    faults += [f"report of {report.system}: {fault}" for fault in own]
    return samples


def _silence(samples: list[Samples]) -> list[str]:
    """A system that says nothing to anything is not there, whatever nothing scores."""
    answers = [c for own in samples for c in own if c.status == "answered"]
    if answers and not any(c.text.strip() or c.tool_calls for c in answers):
        return [f"all {len(answers)} answers are empty; look at what the endpoint serves"]
    return []


def _recount(suite: Suite, report: Report, samples: list[Samples]) -> list[str]:
    """Where the report's numbers are not those of its completions."""
    n_errored = n_errored_cases(samples)
    if n_errored != report.n_errored:
        return [f"says {report.n_errored} errored, its completions {n_errored}"]
    scores = scores_of(suite.metrics, suite.cases, samples)
    again = results_of(scores, clusters_of(suite.clusters, samples))
    if again.keys() != report.metrics.keys():
        return [f"has metrics {sorted(report.metrics)}, its completions give {sorted(again)}"]
    faults = []
    for name, found in again.items():
        said = report.metrics[name]
        if said.signature != found.signature:
            faults.append(
                f"{name} was computed by {said.signature}, here by {found.signature}; evaluate again"
            )
        elif not all(
            math.isclose(getattr(said, part), getattr(found, part), rel_tol=1e-9, abs_tol=1e-9)
            for part in ("value", "low", "high")
        ):
            faults.append(f"says {name} {said.value:.4f}, its completions give {found.value:.4f}")
    return faults
