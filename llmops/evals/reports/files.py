"""The files a session leaves for people and for CI, in its folder beside the completions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmops.errors import InvalidEvidence
from llmops.evals.reports import junit, markdown, marks
from llmops.evals.reports.comparison import Evaluated
from llmops.evals.reports.parquet import write_samples
from llmops.records import Decision, Report
from llmops.settings import Workspace
from llmops.store import Store

PAGE_FILE = "report.html"
SAMPLES_FILE = "samples.parquet"
JUNIT_FILE = "junit.xml"
MARKDOWN_FILE = "summary.md"
ANNOTATIONS_FILE = "annotations.txt"


def write_files(folder: Path, parts: Sequence[Evaluated]) -> None:
    """Write the page, the table of samples, JUnit XML, the Markdown summary and the annotations of a session.

    Args:
        folder: the session's.
        parts: what was evaluated on each suite.
    """
    from llmops.evals.html import render

    lines = [mark.line() for part in parts for mark in marks.of_session(part.path, part)]
    texts = {
        PAGE_FILE: render(parts),
        JUNIT_FILE: junit.of_session(parts),
        MARKDOWN_FILE: markdown.of_session(parts),
        ANNOTATIONS_FILE: "".join(f"{line}\n" for line in lines),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_samples(folder / SAMPLES_FILE, parts)


def decision_texts(workspace: Workspace, decision: Decision, gate_path: str) -> tuple[str, str, str]:
    """JUnit XML, Markdown and annotations of a decision; the summary of its session stands beneath, where it is kept.

    Args:
        workspace: where decision and session lie.
        decision: what the gate said.
        gate_path: the gate's file as given.
    """
    marked = "".join(f"{mark.line()}\n" for mark in marks.of_decision(gate_path, decision))
    session = _session_summary(workspace, decision)
    return junit.of_decision(decision), markdown.of_decision(decision, session), marked


def _session_summary(workspace: Workspace, decision: Decision) -> str | None:
    try:
        report = Store.of(workspace).get_record(Report, decision.reports[0])
        return (workspace.runs / report.session / MARKDOWN_FILE).read_text(encoding="utf-8")
    except (InvalidEvidence, OSError, IndexError):  # a decision may be about records that are gone
        return None
