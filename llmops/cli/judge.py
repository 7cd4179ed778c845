"""`llmops eval judge`: a language model judges kept answers, beside people where a campaign asked them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmops.cli.evaluate import endpoint_of
from llmops.cli.output import as_json, progress, table
from llmops.errors import EXIT_INCONCLUSIVE, EXIT_INVALID, BadRequest
from llmops.records import Figure, JudgeCalibration, JudgementSet
from llmops.schema import short
from llmops.settings import find_workspace

if TYPE_CHECKING:
    from llmops.evals.judge.session import Found

NOT_PERCENT = ("kappa", "correlation", "difference")


def judge(
    file: Annotated[Path, typer.Argument(help="A judge such as evals/judges/docstrings.yaml.")],
    session: Annotated[
        str | None, typer.Option(help="Session whose answers are judged; default: the newest.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Which suite's answers, where the session has several.")
    ] = None,
    candidate: Annotated[
        str | None, typer.Option(help="System that is judged; default: the last one evaluated.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="System it is compared with; default: the only other one.")
    ] = None,
    campaign: Annotated[
        str | None,
        typer.Option(help="Judge this campaign's two reports, and hold the judge against its votes."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the set of judgements.")] = False,
) -> None:
    """Judge the answers of an evaluation, which are read from the store; what was judged before is not asked again.

    Exits 3 while the campaign's votes are not all in, 4 when too few cases could be judged, 5 when the judge is away
    (what it said is kept: run the same command again).
    """
    from llmops.evals.judge.load import load_judge
    from llmops.evals.judge.session import judge_campaign, judge_session
    from llmops.evals.judge.subject import About

    if campaign and (session or suite or candidate or baseline):
        raise BadRequest(
            "judge: --campaign names its two reports by itself; leave out the options about a session"
        )
    workspace, loaded = find_workspace(), load_judge(file)
    url = loaded.config.endpoint.url or f"{endpoint_of(workspace)}/v1"
    with progress("judge") as report:
        if campaign:
            found = judge_campaign(loaded, url, campaign, workspace, report)
        else:
            found = judge_session(loaded, url, About(session, suite, candidate, baseline), workspace, report)
    if json:
        calibration = found.calibration.to_dict() if found.calibration else None
        as_json({"judgements": found.judgements.to_dict(), "calibration": calibration})
    else:
        _print(found, campaign)
    if found.judgements.invalid:
        raise typer.Exit(EXIT_INVALID)
    if found.n_missing:
        raise typer.Exit(EXIT_INCONCLUSIVE)


def _print(found: Found, campaign: str | None) -> None:
    record = found.judgements
    typer.echo(_figures(record.kind, record.figures))
    same = f", {record.n_same} with equal answers" if record.n_same else ""
    typer.echo(
        f"judge    {record.judge}@{short(record.judge_digest)}: {', '.join(record.answered_by) or record.model} at "
        f"{record.endpoint}, template {short(record.template)}; brackets are two-sided {_level(record)} intervals"
    )
    typer.echo(
        f"cases    {record.n_judged} judged, {record.n_errored} errored{same}, {record.n_unanswered} not answered, "
        f"of {record.n_cases}; session {record.session}, suite {record.suite}, judgements {short(record.digest())}"
    )
    if record.kind == "pairwise":
        typer.echo(f"systems  {record.systems[0]} against {record.systems[1]}")
    for note in record.notes:
        typer.echo(f"note     {note}")
    for reason in record.invalid:
        typer.echo(f"INVALID  {reason}")
    if found.calibration:
        _print_calibration(found.calibration)
    elif found.n_missing:
        typer.echo(f"people   campaign {campaign}: {found.n_missing} items lack votes; not counted yet")
    elif not campaign and record.kind == "pairwise":
        typer.echo("people   not held against any: this judge can inform a gate, and decide nothing")


def _print_calibration(found: JudgeCalibration) -> None:
    typer.echo(f"people   {found.n_rated} rated cases, {found.n_votes} votes of {found.n_raters} raters")
    typer.echo(_figures("calibration", found.figures))
    names = {"first": "candidate", "tie": "tie", "second": "baseline"}
    rows = [(f"people: {names[p]}", *row.values()) for p, row in found.confusion.items()]
    typer.echo(table(("", *(f"judge: {names[j]}" for j in found.confusion)), rows))
    typer.echo(f"weight   {found.weight:.2f} of the judge in the calibrated win rate (0: it adds nothing)")


def _figures(title: str, figures: tuple[Figure, ...]) -> str:
    rows = [(f.name.replace("_", " "), f.system or "", _span(f), f.n, f.method) for f in figures]
    return table((title, "system", "value", "cases", "method"), rows)


def _span(figure: Figure) -> str:
    if any(word in figure.name for word in NOT_PERCENT):
        return f"{figure.value:+.2f} [{figure.low:+.2f}, {figure.high:+.2f}]"
    unit = " %" if figure.system is None or figure.name.endswith(" passes") else ""
    return f"{figure.value:.1f}{unit} [{figure.low:.1f}, {figure.high:.1f}]"


def _level(record: JudgementSet) -> str:
    levels = {2 * f.level - 1 for f in record.figures}
    return ", ".join(f"{100 * level:.0f} %" for level in sorted(levels)) or "90 %"
