"""What is judged: the answers that the reports of one session were scored on, read from the store and verified.

Nothing is generated here. A judge that is one of the systems it would judge is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmops.engines.completions import load_answers
from llmops.errors import BadRequest, InvalidEvidence
from llmops.evals.finished import session_reports
from llmops.evals.judge.prompt import Showing
from llmops.records import Campaign, Case, Completion, Report
from llmops.registry.adapters import Registry
from llmops.registry.names import name_states
from llmops.schema import short

# What must be the same of all reports for their answers to differ by the models alone.
SHARED = ("suite_digest", "cluster", "base", "engine", "session", "decoding", "cases", "n_cases")


@dataclass(frozen=True)
class About:
    """Which answers: a session's (default: the newest), of one suite, of two systems by reference."""

    session: str | None = None
    suite: str | None = None
    candidate: str | None = None
    baseline: str | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """Reports with the first sample of each case: `answers[i][j]` is what `reports[i]` says to `cases[j]`.

    Of a comparison `reports` are the candidate's and the baseline's.
    """

    reports: tuple[Report, ...]
    cases: tuple[Case, ...]
    answers: tuple[tuple[Completion, ...], ...]

    def pairs(self) -> list[tuple[Showing, Showing]]:
        """Both showings (candidate first, baseline first) of each case whose two answers are there and differ."""
        ours, theirs = self.answers
        return [
            (Showing(case, (a, b)), Showing(case, (b, a)))
            for case, a, b in zip(self.cases, ours, theirs, strict=True)
            if _answered(a, b) and not same(a, b)
        ]

    def clusters_of(self, cases: Iterable[str]) -> list[str] | None:
        """The cluster of each case (a digest); None where the suite takes cases as independent."""
        if self.reports[0].cluster is None:
            return None
        groups = {case.digest: case.group for case in self.cases}
        return [groups[case] for case in cases]

    @property
    def n_unanswered(self) -> int:
        """Cases to which a system gave no answer."""
        return sum(not _answered(*row) for row in zip(*self.answers, strict=True))

    @property
    def n_same(self) -> int:
        """Cases on which all answers of a comparison read the same."""
        return sum(_answered(*row) and same(*row) for row in zip(*self.answers, strict=True))


def same(first: Completion, second: Completion) -> bool:
    """Whether two answers look alike to a reader, who does not see the space around a text."""
    alike = (first.text.strip(), first.earlier, first.tool_calls)
    return alike == (second.text.strip(), second.earlier, second.tool_calls)


def find_pair(registry: Registry, about: About) -> Subject:
    """The answers of two systems: those named, else the last one evaluated against the only other.

    Raises:
        BadRequest: no such session, suite or system, or it is not clear which are meant.
        InvalidEvidence: a report is no evidence or was altered, or the two do not belong together.
    """
    reports = _reports(registry, about)
    ours = _named(reports, about.candidate) if about.candidate else reports[-1]
    others = [report for report in reports if report.model != ours.model]
    if not others:
        raise BadRequest(
            f"judge: session {ours.session} evaluated {ours.system} alone; a comparison needs two systems"
        )
    if about.baseline:
        theirs = _named(others, about.baseline)
    elif len(others) == 1:
        theirs = others[0]
    else:
        known = ", ".join(report.system for report in others)
        raise BadRequest(
            f"judge: session {ours.session} has {len(reports)} systems; say --baseline, one of {known}"
        )
    return subject_of(registry, (ours, theirs))


def find_systems(registry: Registry, about: About) -> Subject:
    """The answers of every system of the session, the candidate first: the last one evaluated, where none is named.

    The baseline stands next; where it is named, no other system does.

    Raises: as `find_pair`.
    """
    reports = _reports(registry, about)
    ours = _named(reports, about.candidate) if about.candidate else reports[-1]
    others = [report for report in reports if report.model != ours.model]
    return subject_of(registry, (ours, *([_named(others, about.baseline)] if about.baseline else others)))


def find_campaign_pair(registry: Registry, campaign: Campaign) -> Subject:
    """The answers of the two reports that a campaign asks people about.

    Raises:
        BadRequest: the campaign is about no reports.
        InvalidEvidence: a report is gone, altered or no evidence.
    """
    if campaign.reports is None:
        raise BadRequest(
            f"campaign {campaign.name}: shows sampled answers of no evaluation; a judge is calibrated on one with "
            "purpose gate"
        )
    return subject_of(
        registry, tuple(registry.store.get_record(Report, digest) for digest in campaign.reports)
    )


def subject_of(registry: Registry, reports: Sequence[Report]) -> Subject:
    """The verified answers of reports that belong together.

    Raises:
        InvalidEvidence: they do not, one is no evidence, or its answers were altered.
    """
    first = reports[0]
    for report in reports:
        if report.invalid:
            raise InvalidEvidence(
                f"report of {report.system}: is no evidence ({report.invalid[0]}); evaluate again"
            )
        differing = [name for name in SHARED if getattr(report, name) != getattr(first, name)]
        if differing:
            raise InvalidEvidence(
                f"reports of {first.system} and {report.system}: differ in {differing[0]}; evaluate again"
            )
    found = [load_answers(registry.store, report) for report in reports]
    cases = tuple(case for case, _ in found[0])
    return Subject(tuple(reports), cases, tuple(tuple(answer for _, answer in own) for own in found))


def names_of(registry: Registry, subject: Subject) -> frozenset[str]:
    """Every name and digest that the judged systems go by: at the endpoint, as champions, of their files."""
    models = {report.model for report in subject.reports}
    champions = {
        name
        for name, state in name_states(registry.store, registry.ledger).items()
        if state.champion_adapter in models
    }
    return frozenset({report.system for report in subject.reports} | champions | models)


def require_other(judge: str | None, judged: frozenset[str], where: str) -> None:
    """Refuse a judge that is one of the systems it judges: models favour their own answers.

    Raises:
        BadRequest: it is.
    """
    if judge in judged:
        raise BadRequest(
            f"{where}: {judge} is one of the systems that are judged, and would favour itself; name another"
        )


def _answered(*answers: Completion) -> bool:
    return all(answer.status == "answered" for answer in answers)


def _reports(registry: Registry, about: About) -> list[Report]:
    """The newest report of each system of the session on the suite, in the order they were evaluated."""
    session = about.session or _newest_session(registry)
    own = session_reports(registry, session) if session else []
    if not own:
        raise BadRequest(f"judge: no reports of session {session or '(none yet)'}; run `llmops eval` first")
    suites = list(dict.fromkeys(report.suite for report in own))
    suite = about.suite or suites[0]
    if suite not in suites or (len(suites) > 1 and not about.suite):
        raise BadRequest(f"judge: session {session} evaluated {', '.join(suites)}; say --suite, one of them")
    return [report for report in own if report.suite == suite]


def _newest_session(registry: Registry) -> str | None:
    events = registry.ledger.events("report.stored")
    return str(events[-1].body["session"]) if events else None


def _named(reports: Sequence[Report], name: str) -> Report:
    """The report of a system by its name at the endpoint, the part before @, or its digest's start."""
    found = [
        report
        for report in reports
        if name in (report.system, report.system.partition("@")[0])
        or (len(name) >= 6 and report.model.startswith(name))
    ]
    if len(found) != 1:
        known = ", ".join(f"{report.system} ({short(report.model)})" for report in reports)
        raise BadRequest(f"judge: {name} names {len(found)} of the session's systems; give one of {known}")
    return found[0]
