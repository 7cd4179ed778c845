"""`llmops gate`: decide about a candidate on the evidence of reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmops.cli import ci
from llmops.cli.consent import approvals_in_words, votes_in_words
from llmops.cli.output import as_json, table
from llmops.errors import VERDICT_EXIT_CODES
from llmops.records import Check, Decision
from llmops.registry.adapters import Registry
from llmops.registry.approvals import find_decision
from llmops.schema import short
from llmops.settings import find_workspace

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Decide about a candidate on evidence.")


@app.command()
def check(
    gate: Annotated[Path, typer.Argument(help="A gate such as evals/gates/docstrings.yaml.")],
    adapter: Annotated[str, typer.Option(help="The candidate.")] = "latest",
    session: Annotated[
        str | None, typer.Option(help="The evaluation to decide on; default: the newest.")
    ] = None,
    junit: ci.Junit = None,
    markdown: ci.Markdown = None,
    annotations: ci.Annotations = False,
    step_summary: ci.StepSummary = False,
    json: Annotated[bool, typer.Option("--json", help="Print the decision.")] = False,
) -> None:
    """Compare the candidate with the champion (or the base) and exit 0 PASS, 1 FAIL, 3 INCONCLUSIVE, 4 INVALID."""
    from llmops.evals.gate import check_gate

    outputs = ci.Outputs(junit, markdown, annotations, step_summary)
    outputs.require_usable()
    workspace = find_workspace()
    decision = check_gate(gate, workspace, adapter, session)
    print_decision(Registry.of(workspace), decision, json)
    if outputs.wanted:
        from llmops.evals.reports.files import decision_texts

        ci.write_texts(outputs, ci.Texts(*decision_texts(workspace, decision, str(gate))), quiet=json)
    raise typer.Exit(VERDICT_EXIT_CODES[decision.verdict])


@app.command()
def show(
    decision: Annotated[
        str, typer.Argument(help="`latest`, a public name, or the start of a decision's digest.")
    ] = "latest",
    json: Annotated[bool, typer.Option("--json", help="Print the decision.")] = False,
) -> None:
    """Show a decision that was made."""
    registry = Registry.of(find_workspace())
    print_decision(registry, find_decision(registry, decision), json)


def print_decision(registry: Registry, decision: Decision, json: bool) -> None:
    """Print a decision check by check, with its votes and approvals, or as JSON."""
    if json:
        as_json(decision.to_dict())
        return
    rows = [_row(check, decision.ratings is not None) for check in decision.checks]
    if rows:
        typer.echo(
            table(("metric", "baseline -> candidate", "difference", "must be", "verdict", "cases"), rows)
        )
    if decision.ratings is not None:
        typer.echo(f"  votes: {votes_in_words(registry, decision.ratings)}")
    if decision.n_approvals:
        typer.echo(f"  approvals: {approvals_in_words(registry, decision)}")
    for reason in decision.reasons:
        typer.echo(f"  {reason}")
    typer.echo(
        f"{decision.verdict}  {decision.public_name}: {short(decision.candidate)} against {short(decision.baseline)}, "
        f"gate {decision.gate}@{short(decision.gate_digest)}, decision {short(decision.digest())}"
    )


def _row(check: Check, counted: bool) -> tuple[str, ...]:
    """One line of the table; votes that are not all in show no number."""
    n = f"{check.n_cases}" + (f" of {check.n_needed} needed" if check.n_needed else "")
    if check.kind == "at_most":
        share = f"{check.difference:.1f} % [{check.low:.1f}, {check.high:.1f}]"
        return check.metric, f"{check.candidate:.1f}", share, f"< {check.threshold:g}", check.verdict, n
    systems = f"{check.baseline:.1f} -> {check.candidate:.1f}"
    difference = f"{check.difference:+.2f} [{check.low:+.2f}, {check.high:+.2f}]"
    if check.metric == "win_rate" and not counted:
        systems, difference = f"{check.baseline:.1f} -> ?", "not counted yet"
    return check.metric, systems, difference, f"> {check.threshold:+g}", check.verdict, n
