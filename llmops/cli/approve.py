"""`llmops approve`: one person's consent to a decision."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

from llmops.cli.output import as_json
from llmops.records import Decision
from llmops.registry.adapters import Registry
from llmops.registry.approvals import approvals_of
from llmops.registry.approvals import approve as give
from llmops.schema import short
from llmops.settings import find_workspace


def approve(
    decision: Annotated[
        str, typer.Argument(help="`latest`, a public name (its newest), or the start of a decision's digest.")
    ] = "latest",
    approver: Annotated[
        str | None,
        typer.Option(
            "--as", help="Who approves; default: your login. Taken at its word while there are no keys."
        ),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the approval.")] = False,
) -> None:
    """Approve a PASS, once a person; with as many as its gate asks for `llmops release promote` moves the name."""
    registry = Registry.of(find_workspace())
    approval = give(registry, decision, getpass.getuser() if approver is None else approver, reason)
    given = approvals_of(registry, approval.decision)
    about = registry.store.get_record(Decision, approval.decision)
    if json:
        as_json(
            approval.to_dict()
            | {"approval": approval.digest(), "n_given": len(given), "n_needed": about.n_approvals}
        )
        return
    model = registry.adapter(about.candidate).model_name
    typer.echo(
        f"{len(given)} of {about.n_approvals} approvals of decision {short(approval.decision)} about {model}"
        f" ({', '.join(a.approver for a in given)})"
    )
    if len(given) >= about.n_approvals:
        typer.echo(f"next: llmops release promote {about.public_name}")
