"""`llmops gate`: decide about a candidate on the evidence of reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmops.cli.output import as_json, table
from llmops.errors import VERDICT_EXIT_CODES, BadRequest
from llmops.records import Decision
from llmops.registry.adapters import Registry
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
    json: Annotated[bool, typer.Option("--json", help="Print the decision.")] = False,
) -> None:
    """Compare the candidate with the champion (or the base) and exit 0 PASS, 1 FAIL, 3 INCONCLUSIVE, 4 INVALID."""
    from llmops.evals.gate import check_gate

    decision = check_gate(gate, find_workspace(), adapter, session)
    print_decision(decision, json)
    raise typer.Exit(VERDICT_EXIT_CODES[decision.verdict])


@app.command()
def show(
    decision: Annotated[
        str, typer.Argument(help="`latest`, or the start of a decision's digest.")
    ] = "latest",
    json: Annotated[bool, typer.Option("--json", help="Print the decision.")] = False,
) -> None:
    """Show a decision that was made."""
    registry = Registry.of(find_workspace())
    digests = [str(e.body["decision"]) for e in registry.ledger.events("decision.made")]
    found = (
        digests[-1:]
        if decision == "latest"
        else [d for d in dict.fromkeys(digests) if d.startswith(decision)]
    )
    if len(found) != 1:
        raise BadRequest(
            f"decision {decision}: {len(found)} decisions answer to it; `llmops ledger log --kind decision` lists them"
        )
    print_decision(registry.store.get_record(Decision, found[0]), json)


def print_decision(decision: Decision, json: bool) -> None:
    """Print a decision check by check, or as JSON."""
    if json:
        as_json(decision.to_dict())
        return
    rows = [
        (
            c.metric,
            f"{c.baseline:.1f} -> {c.candidate:.1f}",
            f"{c.difference:+.2f} [{c.low:+.2f}, {c.high:+.2f}]",
            f"> {c.threshold:+g}",
            c.verdict,
            f"{c.n_cases}" + (f" of {c.n_needed} needed" if c.n_needed else ""),
        )
        for c in decision.checks
    ]
    if rows:
        typer.echo(
            table(("metric", "baseline -> candidate", "difference", "must be", "verdict", "cases"), rows)
        )
    for reason in decision.reasons:
        typer.echo(f"  {reason}")
    typer.echo(
        f"{decision.verdict}  {decision.public_name}: {short(decision.candidate)} against {short(decision.baseline)}, "
        f"gate {decision.gate}@{short(decision.gate_digest)}, decision {short(decision.digest())}"
    )
