"""The files a session leaves for people and for CI, in its folder beside the completions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmops.evals.reports import junit, markdown, marks
from llmops.evals.reports.comparison import Evaluated
from llmops.evals.reports.parquet import write_samples

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
