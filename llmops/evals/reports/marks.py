"""Annotations: GitHub workflow commands, one line each, that a job's log turns into marks on the change.

Source of the form and its escapes: GitHub, "Workflow commands for GitHub Actions", and actions/toolkit, `command.ts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmops.evals.reports.comparison import Evaluated
from llmops.evals.reports.units import shown_interval
from llmops.records import Decision
from llmops.schema import short

MAX_CHARACTERS = 1000


@dataclass(frozen=True)
class Annotation:
    """A mark on a file of the change: what is wrong with it, under a title."""

    level: Literal["error", "warning", "notice"]
    file: str
    title: str
    message: str

    def line(self) -> str:
        r"""The workflow command.

        >>> Annotation("error", "a,b.yaml", "BLEU: 50%", "first\nsecond").line()
        '::error file=a%2Cb.yaml,title=BLEU%3A 50%25::first%0Asecond'
        """
        message = self.message
        if len(message) > MAX_CHARACTERS:
            message = message[: MAX_CHARACTERS - 3] + "..."
        place = f"file={escape_property(self.file)},title={escape_property(self.title)}"
        return f"::{self.level} {place}::{escape_data(message)}"


def escape_data(text: str) -> str:
    """Text as the message of a command, which ends with its line."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """Text as the value of a property, which a comma or a colon would end."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")


def of_session(file: str, part: Evaluated) -> list[Annotation]:
    """An error for each reason that makes a report no evidence, a warning for each metric that became worse.

    Args:
        file: the suite's path in the change.
        part: what was evaluated on it.
    """
    reports = [result.report for result in part.results]
    marks = [
        Annotation("error", file, f"INVALID: {report.system}", reason)
        for report in reports
        for reason in report.invalid
    ]
    for report in reports:
        if report.n_errored and not report.invalid:
            text = f"{report.n_errored} of {report.n_cases} cases errored; they are not scored"
            marks.append(Annotation("warning", file, f"{report.system}: errored cases", text))
    for comparison in part.comparisons:
        title = f"{comparison.candidate.system} against {comparison.baseline.system}"
        marks += [
            Annotation("warning", file, title, f"{m.metric} is worse by {shown_interval(m.difference, m.unit)}")
            for m in comparison.metrics
            if m.side == "-"
        ]  # fmt: skip
    return marks


def of_decision(file: str, decision: Decision) -> list[Annotation]:
    """One mark a reason: an error unless the gate passes; a pass is a notice.

    Args:
        file: the gate's path in the change.
        decision: what it decided.
    """
    about = f"{decision.verdict}: {decision.public_name} {short(decision.candidate)}"
    if decision.verdict == "PASS":
        text = f"gate {decision.gate} passes on {len(decision.checks)} checks, decision {short(decision.digest())}"
        return [Annotation("notice", file, about, text)]
    reasons = decision.reasons or ("the gate gives no reason",)
    return [Annotation("error", file, about, reason) for reason in reasons]
