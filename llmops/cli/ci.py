"""Options with which a command tells a CI server what came out: JUnit XML, a Markdown summary, annotations."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from llmops.errors import BadRequest, StoreError

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"

Junit = Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Markdown summary.")]
Annotations = Annotated[
    bool, typer.Option("--annotations", help="Print GitHub workflow commands (::error file=...).")
]
StepSummary = Annotated[
    bool, typer.Option("--step-summary", help="Append the Markdown summary to $GITHUB_STEP_SUMMARY.")
]


@dataclass(frozen=True)
class Outputs:
    """What a command was asked to write."""

    junit: Path | None = None
    markdown: Path | None = None
    annotations: bool = False
    step_summary: bool = False

    def require_usable(self) -> None:
        """Refuse before work begins what could not be written after it.

        Raises:
            BadRequest: `--step-summary` outside GitHub Actions, or a file in a folder that is not there.
        """
        if self.step_summary and not os.environ.get(STEP_SUMMARY):
            raise BadRequest(
                f"--step-summary: {STEP_SUMMARY} is not set; leave it out outside GitHub Actions"
            )
        for name, path in (("--junit", self.junit), ("--markdown", self.markdown)):
            if path is not None and not path.absolute().parent.is_dir():
                raise BadRequest(f"{name} {path}: there is no folder {path.parent}; make it first")

    @property
    def wanted(self) -> bool:
        """Whether anything is to be written."""
        return bool(self.junit or self.markdown or self.annotations or self.step_summary)


@dataclass(frozen=True)
class Texts:
    """What there is to write; `annotations` has one workflow command a line."""

    junit: str = ""
    markdown: str = ""
    annotations: str = ""


def write_texts(outputs: Outputs, texts: Texts, quiet: bool = False) -> None:
    """Write what was asked for; annotations go to stderr when `quiet` keeps stdout for JSON.

    Raises:
        StoreError: the disk did not take a file.
    """
    try:
        if outputs.junit:
            outputs.junit.write_text(texts.junit, encoding="utf-8")
        if outputs.markdown:
            outputs.markdown.write_text(texts.markdown, encoding="utf-8")
        if outputs.step_summary:
            with Path(os.environ[STEP_SUMMARY]).open("a", encoding="utf-8") as file:
                file.write(f"{texts.markdown}\n")
    except OSError as error:
        raise StoreError(f"{error.filename}: could not be written ({error.strerror}); free space") from error
    if outputs.annotations and texts.annotations:
        typer.echo(texts.annotations.rstrip("\n"), err=quiet)
