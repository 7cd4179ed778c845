"""`llmops gate`: declare gates, decide about a candidate on the evidence of reports, plan and calibrate before that."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmops.cli.ci import Annotations, Junit, Markdown, Outputs, StepSummary, Texts, write_texts
from llmops.cli.consent import approvals_in_words, votes_in_words
from llmops.cli.evaluate import Concurrency, concurrency_of, endpoint_of
from llmops.cli.output import as_json, progress, table
from llmops.errors import VERDICT_EXIT_CODES, LlmopsError
from llmops.records import Check, Decision
from llmops.registry.adapters import Registry
from llmops.registry.approvals import approvals_of, find_decision
from llmops.schema import short
from llmops.settings import find_workspace

if TYPE_CHECKING:
    from llmops.evals.gate.calibrate import Rate

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Decide about a candidate on evidence.")
Gate = Annotated[Path, typer.Argument(help="A gate such as evals/gates/docstrings.yaml.")]


@app.command()
def check(
    gate: Gate,
    adapter: Annotated[str, typer.Option(help="The candidate.")] = "latest",
    session: Annotated[
        str | None, typer.Option(help="The evaluation to decide on; default: the newest.")
    ] = None,
    junit: Junit = None,
    markdown: Markdown = None,
    annotations: Annotations = False,
    step_summary: StepSummary = False,
    json: Annotated[bool, typer.Option("--json", help="Print the decision.")] = False,
) -> None:
    """Compare the candidate with the champion (or the base) and exit 0 PASS, 1 FAIL, 3 INCONCLUSIVE, 4 INVALID."""
    from llmops.evals.gate import check_gate

    outputs = Outputs(junit, markdown, annotations, step_summary)
    outputs.require_usable()
    workspace = find_workspace()
    decision = check_gate(gate, workspace, adapter, session)
    print_decision(Registry.of(workspace), decision, json)
    if outputs.wanted:
        from llmops.evals.reports.files import decision_texts

        write_texts(outputs, Texts(*decision_texts(workspace, decision, str(gate))), quiet=json)
    raise typer.Exit(VERDICT_EXIT_CODES[decision.verdict])


@app.command()
def run(
    gate: Gate,
    adapter: Annotated[str, typer.Option(help="The candidate.")] = "latest",
    endpoint: Annotated[
        str | None, typer.Option(help="Endpoint URL; default: this workspace's `llmops serve`.")
    ] = None,
    concurrency: Concurrency = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the decision.")] = False,
) -> None:
    """Declare the gate, evaluate all its suites in one session, and decide; exits as `llmops gate check` does."""
    from llmops.evals.gate import check_gate, load_gate
    from llmops.evals.run import EvalRequest, evaluate

    workspace, asked = find_workspace(), load_gate(gate)
    named = () if asked.baseline in ("champion", "base") else (asked.baseline,)
    request = EvalRequest(
        endpoint=endpoint or endpoint_of(workspace),
        adapters=(*named, adapter),
        concurrency=concurrency_of(concurrency),
        gates=(gate,),
    )
    with progress("eval") as report:
        reports = evaluate([gate.parent / file for file in asked.files.values()], request, workspace, report)
    decision = check_gate(gate, workspace, adapter, reports[0].session)
    print_decision(Registry.of(workspace), decision, json)
    raise typer.Exit(VERDICT_EXIT_CODES[decision.verdict])


@app.command()
def declare(
    gate: Annotated[
        list[Path] | None,
        typer.Argument(help="Gates beside those in evals/gates/, which are always declared."),
    ] = None,
) -> None:
    """Write each gate's name and digest into the ledger; `llmops eval` does so by itself before the first question."""
    from llmops.evals.gate import declare_gates

    workspace = find_workspace()
    gates = declare_gates(workspace, Registry.of(workspace).ledger, gate or ())
    typer.echo(
        table(("gate", "digest", "name"), [(g.name, short(d), g.public_name) for d, g in gates.items()])
    )


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


@app.command()
def explain(
    decision: Annotated[
        str, typer.Argument(help="`latest`, a public name, or the start of a decision's digest.")
    ] = "latest",
) -> None:
    """Say in one paragraph what a decision stands on, what was found and what is missing."""
    from llmops.evals.gate.explain import explain as in_words

    registry = Registry.of(find_workspace())
    found = find_decision(registry, decision)

    def name_of(digest: str) -> str:
        try:
            return registry.adapter(digest).model_name
        except LlmopsError:
            return f"model {short(digest)}"

    typer.echo(in_words(found, name_of, len(approvals_of(registry, found.digest()))))


@app.command()
def plan(
    gate: Gate,
    pilot: Annotated[
        str | None, typer.Option(help="Session whose spread to plan by; default: the newest, or none.")
    ] = None,
    adapter: Annotated[str, typer.Option(help="The candidate of the pilot.")] = "latest",
    effect: Annotated[
        float | None, typer.Option(help="True difference to plan goals for; default: the pilot's.")
    ] = None,
    win_rate: Annotated[
        float, typer.Option(min=0, max=100, help="True win rate to plan votes for, in %.")
    ] = 60.0,
    ties: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of rated items that end in a tie.")
    ] = 0.3,
    correlation: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Of the judge's verdicts with people's; default: as last calibrated."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Cases, rated items and judged cases that each check needs at 80, 90 and 95 % power, before any is spent."""
    from llmops.evals.gate.needs import POWERS, Assumptions
    from llmops.evals.gate.plan import plan as needs

    registry = Registry.of(find_workspace())
    found = needs(registry, gate, pilot, adapter, Assumptions(effect, win_rate, ties, correlation))
    if json:
        as_json([asdict(row) for row in found])
        return
    head = ("check", "limit", "true difference", "sd", *(f"{100 * p:.0f} %" for p in POWERS), "of", "from")
    rows = [
        (row.check, f"{row.limit:+.4g}", f"{row.assumed:+.4g}", f"{row.sd:.4g}",
         *(f"{n:,}" if n else "-" for n in row.needed.values()), row.unit, row.basis)
        for row in found
    ]  # fmt: skip
    typer.echo(table(head, rows))


@app.command()
def calibrate(
    gate: Gate,
    session: Annotated[
        str | None, typer.Option(help="Session whose scores are shuffled; default: the newest.")
    ] = None,
    adapter: Annotated[
        str, typer.Option(help="The candidate of the session, or who is asked twice.")
    ] = "latest",
    endpoint: Annotated[
        str | None,
        typer.Option(help="Ask one system twice at this URL instead of shuffling a session's scores."),
    ] = None,
    runs: Annotated[int, typer.Option(min=2, max=1000, help="With --endpoint: how many times twice.")] = 8,
    n: Annotated[int, typer.Option(min=20, max=100_000, help="Without: how many shuffles.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the shuffles.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the rates as JSON.")] = False,
) -> None:
    """How often the gate errs on your own data: false passes and false blocks of systems that are one in truth."""
    from llmops.evals.gate import load_gate
    from llmops.evals.gate.calibrate import calibrate as measure
    from llmops.evals.gate.calibrate import one_by_one, shuffled
    from llmops.evals.gate.decide import pilot
    from llmops.evals.gate.twice import Twice, ask_twice

    workspace = find_workspace()
    if endpoint is not None:
        with progress("calibrate") as report:
            asked = ask_twice(gate, Twice(endpoint, adapter, runs), workspace, report)
        n, equals = runs, one_by_one(asked)
    else:
        equals = shuffled(pilot(Registry.of(workspace), gate, session, adapter))
    checks, verdicts = measure(load_gate(gate), equals, n, seed)
    if json:
        as_json({"checks": [asdict(c) for c in checks], "gate": {k: asdict(v) for k, v in verdicts.items()}})
        return
    rows = [
        (c.check, c.kind, f"{c.nominal:.3g} %", _rate(c.false_pass), _rate(c.false_block), _rate(c.undecided))
        for c in checks
    ]
    typer.echo(table(("check", "kind", "nominal", "false pass", "false block", "undecided"), rows))
    said = ", ".join(f"{verdict} {_rate(found)}" for verdict, found in verdicts.items())
    typer.echo(
        f"metrics and slices of the gate on equal systems, {n:,} times: {said}; brackets are 95 % intervals"
    )


def _rate(found: Rate | None) -> str:
    return f"{found.percent:.1f} % [{found.low:.1f}, {found.high:.1f}]" if found else "-"


def print_decision(registry: Registry, decision: Decision, json: bool) -> None:
    """Print a decision check by check, with its votes and approvals, or as JSON."""
    if json:
        as_json(decision.to_dict())
        return
    many = len({check.suite for check in decision.checks if check.role != "votes"}) > 1
    rows = [_row(check, decision.ratings is not None, many) for check in decision.checks]
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


def _row(check: Check, counted: bool, many_suites: bool) -> tuple[str, ...]:
    """One line of the table; votes that are not all in show no number."""
    name = f"{check.suite} {check.metric}" if many_suites and check.suite else check.metric
    name += f" [{check.group}]" if check.group else ""
    n = f"{check.n_cases}" + (f" of {check.n_needed} needed" if check.n_needed else "")
    places = 1 if check.unit == "points" else 3
    beyond = ">" if check.better == "higher" else "<"
    if check.kind == "at_most":
        share = f"{check.difference:.{places}f} [{check.low:.{places}f}, {check.high:.{places}f}]"
        return name, f"{check.candidate:.{places}f}", share, f"< {check.threshold:g}", check.verdict, n
    systems = f"{check.baseline:.{places}f} -> {check.candidate:.{places}f}"
    places += 1
    difference = f"{check.difference:+.{places}f} [{check.low:+.{places}f}, {check.high:+.{places}f}]"
    if check.metric == "win_rate" and not counted:
        systems, difference = f"{check.baseline:.1f} -> ?", "not counted yet"
    return name, systems, difference, f"{beyond} {check.threshold:+.4g}", check.verdict, n
