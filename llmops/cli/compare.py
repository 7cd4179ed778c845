"""`llmops eval compare`: two systems on the cases both answered, whenever they answered them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmops.cli.ci import Markdown, Outputs, Texts, write_texts
from llmops.cli.output import as_json, table
from llmops.errors import EXIT_INVALID
from llmops.settings import find_workspace

if TYPE_CHECKING:
    from llmops.evals.reports.comparison import CaseLine, Comparison
    from llmops.evals.reports.stored import Held

MAX_CHARACTERS = 160  # of a text in a line
SIDES = {"+": "better", "-": "WORSE", "0": ""}


def compare(
    baseline: Annotated[
        str, typer.Argument(help="SYSTEM (or its beginning), SESSION:SYSTEM, SESSION, or a report's digest.")
    ],
    candidate: Annotated[str, typer.Argument(help="The same, of what is held against it.")],
    session: Annotated[
        str | None, typer.Option(help="Session of systems named alone; default: the newest.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Name of the suite; default: all that both answered.")
    ] = None,
    suite_file: Annotated[
        list[Path] | None, typer.Option(help="File of a suite that lies outside evals/suites; repeatable.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Metric that orders worst and best cases; default: the suite's first.")
    ] = None,
    markdown: Markdown = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Compare two systems: every metric's paired difference, by slice too, and the cases that changed most.

    Exits 4 when the reports did not answer the same cases, or when more than the models differs (engine, decoding ...).
    """
    from llmops.evals.reports.stored import Wanted, compare_stored

    outputs = Outputs(markdown=markdown)
    outputs.require_usable()
    wanted = Wanted(baseline, candidate, session, suite, tuple(suite_file or ()), by)
    found = compare_stored(find_workspace(), wanted)
    if outputs.wanted:
        from llmops.evals.reports.markdown import of_held

        write_texts(outputs, Texts(markdown=of_held(found)))
    if json:
        as_json([_plain(held) for held in found])
    else:
        for held in found:
            _print(held)
    if any(held.faults for held in found):
        raise typer.Exit(EXIT_INVALID)


def _plain(held: Held) -> dict[str, object]:
    return {**held.comparison.to_dict(), "faults": list(held.faults), "warnings": list(held.warnings)}


def _print(held: Held) -> None:
    found = held.comparison
    typer.echo(
        f"{found.candidate.suite}: {found.candidate.system} against {found.baseline.system}, "
        f"{found.n_cases} cases, {found.n_left_out} left out"
    )
    typer.echo(_metrics(found))
    if found.slices:
        typer.echo(f"\n{_slices(found)}")
    for title, lines in (("lost most", found.worst), ("gained most", found.best)):
        if lines:
            typer.echo(f"\n{title} by {found.by}")
            for line in lines:
                _print_case(line, found)
    for warning in held.warnings:
        typer.echo(f"warning  {warning}")
    for fault in held.faults:
        typer.echo(f"INVALID  {fault}")


def _metrics(found: Comparison) -> str:
    from llmops.evals.reports.units import shown, shown_interval

    rows = [
        (
            line.metric,
            f"{shown(line.baseline, line.unit)} -> {shown(line.candidate, line.unit)}",
            shown_interval(line.difference, line.unit),
            f"{line.n_better} / {line.n_worse} / {line.n_equal}",
            f"in doubt: {line.difference.doubt}" if line.difference.doubt else SIDES[line.side],
        )
        for line in found.metrics
    ]
    return table(("metric", "baseline -> candidate", "difference", "better / worse / equal", ""), rows)


def _slices(found: Comparison) -> str:
    from llmops.evals.reports.units import shown_interval

    rows = []
    for part in found.slices:
        line = next((line for line in part.metrics if line.metric == found.by), None)
        difference = shown_interval(line.difference, line.unit) if line else "-"
        rows.append(
            (f"{part.about}={part.value}", part.n_cases, difference, SIDES[line.side] if line else "")
        )
    return table(("slice", "cases", f"difference of {found.by}", ""), rows)


def _print_case(line: CaseLine, found: Comparison) -> None:
    from llmops.evals.reports.markdown import said
    from llmops.evals.reports.units import shown

    unit = found.line(found.by).unit
    before, after = (shown(score, unit) for score in line.scores)
    typer.echo(f"  {line.case.source}  {before} -> {after}")
    texts = [("asked", line.case.messages[-1].content)]
    texts += [("reference", reference) for reference in line.case.references[:1]]
    texts += [("baseline", said(line.baseline[0])), ("candidate", said(line.candidate[0]))]
    for name, text in texts:
        flat = " ".join(text.split())
        typer.echo(f"    {name:10}{flat if len(flat) <= MAX_CHARACTERS else flat[:MAX_CHARACTERS] + '...'}")
