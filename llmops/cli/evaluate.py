"""`llmops eval`: systems answer a suite through the endpoint and are scored.

`llmops eval SUITE` is `llmops eval run SUITE`: what is no name of a command is what is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmops.cli import ci
from llmops.cli.output import as_json, progress, table
from llmops.errors import EXIT_INVALID, BadRequest
from llmops.records import Report
from llmops.schema import short
from llmops.settings import Workspace, find_workspace


class _RunByDefault(TyperGroup):
    """Commands of which `run` may go unnamed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before arguments that begin with neither a command nor a request for help."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Evaluate systems on suites, and work with the reports. `llmops eval SUITE` is `llmops eval run SUITE`.",
)


@app.command("run")
def evaluate(
    suite: Annotated[Path, typer.Argument(help="A suite such as evals/suites/docstrings.yaml.")],
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapter to evaluate (default: latest); repeat for more.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Endpoint URL; default: this workspace's `llmops serve`.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Session to finish: answered cases are not asked again.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests under way at once.")] = 16,
    junit: ci.Junit = None,
    markdown: ci.Markdown = None,
    annotations: ci.Annotations = False,
    step_summary: ci.StepSummary = False,
    json: Annotated[bool, typer.Option("--json", help="Print the reports.")] = False,
) -> None:
    """Evaluate base, champion and adapters, interleaved in one engine session; every answer is kept before scoring.

    Exits 4 when a report is no evidence (a wrong model answered, cases errored ...); the reasons are shown.
    """
    from llmops.evals.run import EvalRequest, report_page
    from llmops.evals.run import evaluate as run

    outputs = ci.Outputs(junit, markdown, annotations, step_summary)
    outputs.require_usable()
    workspace = find_workspace()
    url = endpoint or endpoint_of(workspace)
    request = EvalRequest(
        endpoint=url, adapters=tuple(adapter or ["latest"]), session=resume, concurrency=concurrency
    )
    with progress("eval") as report:
        reports = run(suite, request, workspace, report)
    if json:
        as_json([r.to_dict() for r in reports])
    else:
        _print(reports)
        typer.echo(f"page     {report_page(workspace, reports[0].session)}")
    if outputs.wanted:
        ci.write_texts(outputs, session_texts(workspace, reports[0].session), quiet=json)
    if any(r.invalid for r in reports):
        raise typer.Exit(EXIT_INVALID)


def session_texts(workspace: Workspace, session: str) -> ci.Texts:
    """What a finished session says to a CI server, as it lies in its folder."""
    from llmops.evals.reports.files import ANNOTATIONS_FILE, JUNIT_FILE, MARKDOWN_FILE

    names = (JUNIT_FILE, MARKDOWN_FILE, ANNOTATIONS_FILE)
    return ci.Texts(*((workspace.runs / session / name).read_text(encoding="utf-8") for name in names))


def endpoint_of(workspace: Workspace) -> str:
    """URL of the endpoint this workspace serves.

    Raises:
        BadRequest: nothing serves.
    """
    from llmops.serving.server import running

    info = running(workspace)
    if info is None:
        raise BadRequest(
            "endpoint: nothing serves in this workspace; run `llmops serve serving/local.yaml --detach` first"
        )
    return info.url


def _print(reports: list[Report]) -> None:
    first = reports[0]
    names = list(dict.fromkeys(name for report in reports for name in report.metrics))
    rows = [(r.system, r.n_cases - r.n_errored, *(_cell(r, name) for name in names)) for r in reports]
    typer.echo(table(("system", "cases", *names), rows))
    engine = first.engine
    typer.echo(
        f"session  {first.session}: suite {first.suite}@{short(first.suite_digest)}, {engine.engine} {engine.version} "
        f"{engine.dtype} on {engine.device}, brackets are two-sided {_level(first)} intervals"
    )
    for report in reports:
        for reason in report.invalid:
            typer.echo(f"INVALID  {report.system}: {reason}")


def _cell(report: Report, name: str) -> str:
    m = report.metrics.get(name)
    if m is None:  # too few cases were answered to score any
        return "-"
    return f"{m.value:.1f} [{m.low:.1f}, {m.high:.1f}]"


def _level(report: Report) -> str:
    levels = {m.level for m in report.metrics.values()}
    return ", ".join(f"{100 * level:g} %" for level in sorted(levels))
