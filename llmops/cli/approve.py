"""`llmops approve`: one person's consent to a decision."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

from llmops.auth import Keys
from llmops.cli.output import as_json
from llmops.errors import BadRequest
from llmops.records import Decision
from llmops.registry.adapters import Registry
from llmops.registry.approvals import approvals_of
from llmops.registry.approvals import approve as give
from llmops.schema import short
from llmops.settings import Workspace, api_key, find_workspace


def approve(
    decision: Annotated[
        str, typer.Argument(help="`latest`, a public name (its newest), or the start of a decision's digest.")
    ] = "latest",
    approver: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="Who approves; default: your login. Once there are keys: the holder of the one in LLMOPS_API_KEY.",
        ),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the approval.")] = False,
) -> None:
    """Approve a PASS, once a person; with as many as its gate asks for `llmops release promote` moves the name."""
    workspace = find_workspace()
    registry = Registry.of(workspace)
    approval = give(registry, decision, _approver(workspace, approver), reason)
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


def _approver(workspace: Workspace, said: str | None) -> str:
    """Who approves: taken at its word while there are no keys, then whoever holds the key that is shown."""
    keys = Keys.of(workspace)
    if not keys.required():
        return getpass.getuser() if said is None else said
    key = keys.opened_by(api_key() or "")
    if key is None or key.role not in ("operator", "admin"):
        raise BadRequest(
            "approve: needs an operator's key, since there are keys; set LLMOPS_API_KEY to yours"
        )
    if said not in (None, key.name):
        raise BadRequest(f"--as: {said!r} does not hold the key, {key.name!r} does; leave it out")
    return key.name
