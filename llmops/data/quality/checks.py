"""All checks over one set of rows: the report, the rows that stay, and the refusal when a gate fires.

Reads nothing itself; which cases the suites ask is told by a function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from llmops.data.quality.config import CHECKS, Quality
from llmops.data.quality.contamination import contamination
from llmops.data.quality.duplicates import exact_duplicates, near_duplicates
from llmops.data.quality.findings import Found
from llmops.data.quality.language import languages
from llmops.data.quality.length import CountTokens, lengths
from llmops.data.quality.pii import INSTALL, installed, personal_data, redact_row
from llmops.data.quality.texts import T
from llmops.errors import DataError, InvalidEvidence, LlmopsError
from llmops.records import CheckResult, Dropped, EvalText, Offence, QualityReport
from llmops.schema import Progress, no_progress

N_EXAMPLES = 10  # rows a check names in the report
N_NAMED = 3  # rows a refusal names


@dataclass(frozen=True)
class Against:
    """The cases that training rows are compared with; `waiting` says which suites have none yet, and why."""

    texts: tuple[EvalText, ...] = ()
    waiting: tuple[str, ...] = ()


@dataclass(frozen=True)
class Surroundings:
    """What checks need besides rows.

    `cases` reads the suites' cases and is called when contamination is checked; `count_tokens` is None where no
    tokenizer is known.
    """

    cases: Callable[[], Against] = Against
    count_tokens: CountTokens | None = None
    progress: Progress = no_progress


@dataclass(frozen=True)
class Assessed(Generic[T]):
    """Rows after the checks: kept (redacted where that was asked), dropped with the reason, and the report of all."""

    rows: Sequence[T]
    dropped: tuple[Dropped, ...]
    report: QualityReport

    @property
    def changed(self) -> bool:
        """Whether `rows` are other ones than were given; if not, they are the very same sequence."""
        return bool(self.report.n_dropped or self.report.n_redacted)


def assess(
    rows: Sequence[T], settings: Quality, what: str, around: Surroundings | None = None
) -> Assessed[T]:
    """Run every check that is not off, each over the rows that those before it left.

    Args:
        rows: conversations, preferences or judged answers, in the order in which the first of equal ones stays.
        settings: which checks run, and what a finding does.
        what: the rows in words, for the report.
        around: suites, tokenizer and progress; none by default.

    Raises:
        ConfigError: a check needs a library that is not installed, or a setting names nothing that exists.
        DataError: the suites' cases cannot be read and contamination is not just reported.
        InvalidEvidence: the same, because a suite's data was altered.
    """
    around = around or Surroundings()
    kept: Sequence[T] = rows
    dropped, n_redacted = list[Dropped](), 0
    results: dict[str, CheckResult] = {}
    for check in CHECKS:
        action = settings.action_of(check)
        if action == "off":
            continue
        around.progress(0, 0, f"checking {len(kept):,} rows: {check.replace('_', ' ')}")
        found = _find(check, kept, settings, around)
        results[check] = _result(kept, found, action)
        bad = {f.index: f.reason for f in found.findings}
        if action == "redact" and bad:
            n_redacted += len(bad)
            kept = [redact_row(row, settings.pii) if i in bad else row for i, row in enumerate(kept)]
        elif action == "drop" and bad:
            dropped += [Dropped(kept[i].source, reason) for i, reason in sorted(bad.items())]
            kept = [row for i, row in enumerate(kept) if i not in bad]
    report = QualityReport(
        rows=what,
        n_rows=len(rows),
        n_dropped=len(dropped),
        n_redacted=n_redacted,
        settings=settings.model_dump(mode="json"),
        checks=results,
    )
    return Assessed(kept, tuple(dropped), report)


def _result(rows: Sequence[Any], found: Found, action: str) -> CheckResult:
    worst = sorted(found.findings, key=lambda f: -f.weight)[:N_EXAMPLES]
    examples = tuple(Offence(rows[f.index].source, f.reason) for f in worst)
    return CheckResult(action, len(found.findings), examples, found.distribution, found.not_checked)


def require_clean(report: QualityReport, where: str) -> None:
    """Refuse rows in which a check that is set to refuse has found something.

    Raises:
        DataError: names the first check and its worst rows by file and line.
    """
    for name in report.refused:
        result = report.checks[name]
        first = "; ".join(f"{e.source}: {e.reason}" for e in result.examples[:N_NAMED])
        more = "; ..." if result.n_found > N_NAMED else ""
        raise DataError(
            f"{where}: {first}{more}: {result.n_found:,} of {report.n_rows:,} rows are refused by "
            f"quality.{name}; take them out, or set quality.{name}: {{action: drop}} (report lets them in)"
        )


def _find(check: str, rows: Sequence[Any], settings: Quality, around: Surroundings) -> Found:
    if check == "contamination":
        return _contamination(rows, settings, around)
    if check == "pii":
        if settings.pii.action == "report" and not installed():
            return Found((), not_checked=f"presidio-analyzer is not installed: {INSTALL}")
        return personal_data(rows, settings.pii)
    if check == "duplicates":
        return exact_duplicates(rows)
    if check == "near_duplicates":
        return near_duplicates(rows, settings.near_duplicates)
    if check == "language":
        return languages(rows, settings.language)
    return lengths(rows, settings.length, around.count_tokens)


def _contamination(rows: Sequence[Any], settings: Quality, around: Surroundings) -> Found:
    """Compare with the suites' cases; those that cannot be read stop all but a mere report."""
    try:
        against = around.cases()
    except LlmopsError as error:
        if settings.contamination.action == "report":
            return Found((), not_checked=str(error))
        kind = InvalidEvidence if isinstance(error, InvalidEvidence) else DataError
        raise kind(
            f"quality.contamination: rows cannot be compared with the suites ({error}); mend that, or set "
            "quality.contamination: report"
        ) from error
    found = contamination(rows, against.texts, settings.contamination)
    return Found(found.findings, found.distribution, "; ".join(against.waiting) or None)
