"""`llmops eval`: systems answer a suite through the endpoint and are scored.

`llmops eval SUITE` is `llmops eval run SUITE`: what is no name of a command is what is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from llmops.cli.ci import Annotations, Junit, Markdown, Outputs, StepSummary, Texts, write_texts
from llmops.cli.output import as_json, progress, table
from llmops.errors import EXIT_INVALID, BadRequest
from llmops.records import Report
from llmops.schema import short
from llmops.settings import Workspace, find_workspace

if TYPE_CHECKING:
    from llmops.evals.lm_eval import TaskResult

MOST_CONCURRENT = 1024


class _RunByDefault(TyperGroup):
    """Commands of which `run` may go unnamed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before arguments that begin with neither a command nor a request for help."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


Concurrency = Annotated[
    str, typer.Option(help="Requests under way at once, 1 to 1024; auto: what is fastest, up to 256.")
]
app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Evaluate systems on suites, and work with the reports. `llmops eval SUITE` is `llmops eval run SUITE`.",
)


@app.command("run")
def evaluate(
    suites: Annotated[
        list[Path], typer.Argument(help="Suites such as evals/suites/docstrings.yaml, asked in one session.")
    ],
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapter to evaluate (default: latest); repeat for more.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Endpoint URL; default: this workspace's `llmops serve`.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="green: measure on the second engine that `llmops engine start` put beside."),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Session to finish: answered cases are not asked again.")
    ] = None,
    gate: Annotated[
        list[Path] | None,
        typer.Option(
            help="Gate that will decide, beside those in evals/gates/; declared before the first question."
        ),
    ] = None,
    concurrency: Concurrency = "auto",
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Ask also what the same model answered before.")
    ] = False,
    junit: Junit = None,
    markdown: Markdown = None,
    annotations: Annotations = False,
    step_summary: StepSummary = False,
    json: Annotated[bool, typer.Option("--json", help="Print the reports.")] = False,
) -> None:
    """Evaluate base, champion and adapters, interleaved in one engine session; every answer is kept before scoring.

    Exits 4 when a report is no evidence (a wrong model answered, cases errored ...); the reasons are shown.
    """
    from llmops.evals.run import EvalRequest
    from llmops.evals.run import evaluate as run

    outputs = Outputs(junit, markdown, annotations, step_summary)
    outputs.require_usable()
    workspace = find_workspace()
    request = EvalRequest(
        endpoint=endpoint_on(endpoint or endpoint_of(workspace), engine),
        adapters=tuple(adapter or ["latest"]),
        session=resume,
        concurrency=concurrency_of(concurrency),
        cache=not no_cache,
        gates=tuple(gate or ()),
    )
    with progress("eval") as report:
        reports = run(suites, request, workspace, report)
    _say(reports, workspace, json)
    if outputs.wanted:
        write_texts(outputs, session_texts(workspace, reports[0].session), quiet=json)
    _require_evidence(reports)


@app.command("rescore")
def rescore(
    session: Annotated[str, typer.Argument(help="A finished session.")],
    suites: Annotated[
        list[Path] | None, typer.Argument(help="Its suites' files, where they are not where they were.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the reports.")] = False,
) -> None:
    """Score a session's completions by the metrics its suites name today; nothing is asked again.

    Exits 2 when cases, decoding or samples of a suite changed: other answers would be needed.
    """
    from llmops.evals.rescore import rescore as run

    workspace = find_workspace()
    reports = run(session, workspace, tuple(suites or ()))
    _say(reports, workspace, json)
    _require_evidence(reports)


@app.command("lm-eval")
def lm_eval(
    tasks: Annotated[str, typer.Option(help="Tasks of lm-evaluation-harness, with commas between them.")],
    include_path: Annotated[
        Path | None, typer.Option(help="Folder with the YAML files of tasks of your own.")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapter to evaluate (default: latest); repeat for more.")
    ] = None,
    api: Annotated[
        str, typer.Option(help="chat, or completions for tasks that compare log-probabilities.")
    ] = "chat",
    limit: Annotated[int | None, typer.Option(min=1, help="Questions a task; default: all.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests under way at once.")] = 16,
    endpoint: Annotated[
        str | None, typer.Option(help="Endpoint URL; default: this workspace's `llmops serve`.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="green: measure on the second engine that `llmops engine start` put beside."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the results.")] = False,
) -> None:
    """Run lm-evaluation-harness's tasks on base, champion and adapters through the served endpoint.

    Exits 4 when an answer came from another model, prompt contract or engine than it should.
    """
    from llmops.evals.lm_eval import TaskRequest, run_tasks

    if api not in ("chat", "completions"):
        raise BadRequest(f"--api: is {api!r}; use chat or completions")
    workspace = find_workspace()
    request = TaskRequest(
        endpoint=endpoint_on(endpoint or endpoint_of(workspace), engine),
        tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()),
        adapters=tuple(adapter or ["latest"]),
        include_path=include_path,
        api="chat" if api == "chat" else "completions",
        limit=limit,
        concurrency=concurrency,
    )
    with progress("lm-eval") as report:
        folder, results = run_tasks(request, workspace, report)
    if json:
        as_json([asdict(result) for result in results])
    else:
        _print_tasks(folder, results)
    if any(result.invalid for result in results):
        raise typer.Exit(EXIT_INVALID)


def concurrency_of(said: str) -> int | Literal["auto"]:
    """What `--concurrency` says.

    Raises:
        BadRequest: it is neither `auto` nor a number within bounds.
    """
    if said == "auto":
        return "auto"
    if said.isdecimal() and 1 <= int(said) <= MOST_CONCURRENT:
        return int(said)
    raise BadRequest(f"--concurrency: is {said!r}; use auto, or 1 to {MOST_CONCURRENT}")


def session_texts(workspace: Workspace, session: str) -> Texts:
    """What a finished session says to a CI server, as it lies in its folder."""
    from llmops.evals.reports.files import ANNOTATIONS_FILE, JUNIT_FILE, MARKDOWN_FILE

    names = (JUNIT_FILE, MARKDOWN_FILE, ANNOTATIONS_FILE)
    return Texts(*((workspace.runs / session / name).read_text(encoding="utf-8") for name in names))


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


def endpoint_on(endpoint: str, engine: str | None) -> str:
    """The address of one of an endpoint's engines: of the one that serves (None), or of the second one (`green`).

    Raises:
        BadRequest: another engine is asked for.
    """
    if engine is None:
        return endpoint
    if engine != "green":
        raise BadRequest(f"--engine: is {engine!r}; use green, or leave it out for the engine that serves")
    return endpoint.rstrip("/").removesuffix("/v1") + "/green"


def _say(reports: Sequence[Report], workspace: Workspace, json: bool) -> None:
    """Print the reports and where their page is."""
    from llmops.evals.run import report_page

    if json:
        as_json([r.to_dict() for r in reports])
    else:
        for suite in dict.fromkeys(r.suite for r in reports):
            _print([r for r in reports if r.suite == suite])
        typer.echo(f"page     {report_page(workspace, reports[0].session)}")


def _require_evidence(reports: Sequence[Report]) -> None:
    if any(r.invalid for r in reports):
        raise typer.Exit(EXIT_INVALID)


def _print(reports: Sequence[Report]) -> None:
    first = reports[0]
    names = list(dict.fromkeys(name for report in reports for name in report.metrics))
    rows = [(r.system, r.n_cases - r.n_errored, *(_cell(r, name) for name in names)) for r in reports]
    typer.echo(table(("system", "cases", *names), rows))
    engine = first.engine
    typer.echo(
        f"session  {first.session}: suite {first.suite}@{short(first.suite_digest)}, {engine.engine} {engine.version} "
        f"{engine.dtype} on {engine.device}, brackets are two-sided {_level(first)} intervals"
    )
    if n_cached := sum(r.n_cached for r in reports):
        n_all = sum(r.n_cases * r.n_samples for r in reports)
        typer.echo(f"cached   {n_cached} of {n_all} answers are from earlier sessions; --no-cache asks again")
    for report in reports:
        for reason in report.invalid:
            typer.echo(f"INVALID  {report.system}: {reason}")


def _print_tasks(folder: Path, results: Sequence[TaskResult]) -> None:
    for result in results:
        rows = [
            (task, name, f"{value:.4f}")
            for task, found in result.results.items()
            for name, value in found.items()
            if isinstance(value, float) and "stderr" not in name
        ]
        typer.echo(f"{result.system}: {result.n_answers} answers")
        typer.echo(table(("task", "metric", "value"), rows))
        for reason in result.invalid:
            typer.echo(f"INVALID  {result.system}: {reason}")
    typer.echo(f"session  {folder.name}, in {folder}")


def _cell(report: Report, name: str) -> str:
    m = report.metrics.get(name)
    if m is None:  # too few cases were answered to score any
        return "-"
    shown = ".1f" if m.unit == "points" else ".4g"
    return f"{m.value:{shown}} [{m.low:{shown}}, {m.high:{shown}}]"


def _level(report: Report) -> str:
    levels = {m.level for m in report.metrics.values()}
    return ", ".join(f"{100 * level:g} %" for level in sorted(levels))
